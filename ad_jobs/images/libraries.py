"""Decoding libraries at arm's length: what they raise on bad bytes gets a code, what they print goes nowhere."""

from __future__ import annotations

import functools
import logging
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from ad_jobs.errors import ErrorCode, ImageError

# What decoding libraries were seen to raise on damaged bytes; SyntaxError is Pillow's "broken PNG".
# Caught around their calls alone, never around our own.
DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_LOGGERS = ("pydicom", "tifffile", "PIL")


@contextmanager
def foreign(library: str) -> Iterator[None]:
    """Turn what `library` raises on bad bytes into an ImageError with the error's class, never its text.

    The text may quote the header, and a header may hold a name.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(ErrorCode.TOO_MUCH_MEMORY, f"{library}: no memory left") from None
    except (EOFError, struct.error):
        # struct.error: fewer bytes than a field has.
        raise ImageError(ErrorCode.TRUNCATED, f"{library}: the object ends too early") from None
    except DECODER_ERRORS as error:
        # C libraries tell it in words.
        if "memory" in str(error).lower():
            raise ImageError(ErrorCode.TOO_MUCH_MEMORY, f"{library}: no memory left") from None
        raise ImageError(ErrorCode.CORRUPT, f"{library}: {type(error).__name__}") from None


@contextmanager
def stderr_of_c() -> Iterator[list[str]]:
    """A list that holds, once the block is left, the lines that C libraries printed to stderr in it.

    The last resort, for libraries that tell their warnings in no other way.
    Process-wide while it lasts: for one decoding thread a process.
    """
    lines: list[str] = []
    catch = _catch()
    before = os.dup(2)
    os.dup2(catch, 2)
    try:
        yield lines
    finally:
        os.dup2(before, 2)
        os.close(before)
        if printed := os.fstat(catch).st_size:
            lines += os.pread(catch, min(printed, _MOST_PRINTED_BYTES), 0).decode("ascii", "replace").splitlines()
            os.ftruncate(catch, 0)
            os.lseek(catch, 0, os.SEEK_SET)


# A damaged object may have a line printed for each of its blocks.
_MOST_PRINTED_BYTES = 1 << 16


@functools.cache
def _catch() -> int:
    """The descriptor of a nameless file for stderr_of_c, the process's own."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' warnings off stderr: at a million objects they would be the log.

    Process-wide while it lasts, like `warnings.catch_warnings`: for one decoding thread a process.
    """
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
