"""What every file format gives the decoder: a header and frames; and how a library's errors are named."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.schema import HEADER

# Rec. 601 luma, the Y of YBR_FULL in PS3.3 C.7.6.3.1.2: what a grey detector sees of a colour picture.
LUMA = np.array([0.299, 0.587, 0.114])

# What decoding libraries were seen to raise on damaged bytes. Caught around their calls alone, never around
# our own.
DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,  # Pillow's "broken PNG"
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_LOGGERS = ("pydicom", "tifffile", "PIL")


Pixels = npt.NDArray[np.floating[Any]]  # [rows, columns] or [rows, columns, 3] in [0, 1], 1 = white
Numbered = Iterator[tuple[int, Pixels]]


class Picture(Protocol):
    """One object's picture: `header` by schema.HEADER, and `frames`, the number of frames it announces."""

    header: dict[str, object]
    frames: int

    def read(self, policy: PixelPolicy, only: int | None = None) -> Numbered:
        """Yield (number, pixels [rows, columns] or [rows, columns, 3] in [0, 1]) of each frame, in order.

        Only frame `only`, if given. Nothing of a frame is kept once the next is asked for.
        """


def empty_header(**known: object) -> dict[str, object]:
    """A header with every key of schema.HEADER, null but for `known`."""
    return {**dict.fromkeys(HEADER.names), **known}


def check_size(rows: int, columns: int, limits: Limits) -> None:
    """Raise ImageError if a frame of this size has no pixels, or more than the limit."""
    if rows < 1 or columns < 1:
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"a frame of {rows} x {columns} has no pixels")
    if rows * columns > limits.max_pixels:
        raise ImageError(
            ErrorCode.TOO_MANY_PIXELS,
            f"{rows} x {columns} = {rows * columns} pixels a frame, over max_pixels {limits.max_pixels}",
        )


def check_frames(frames: int, limits: Limits) -> None:
    """Raise ImageError if an object announces more frames than the limit."""
    if frames > limits.max_frames:
        raise ImageError(ErrorCode.TOO_MANY_FRAMES, f"{frames} frames, over max_frames {limits.max_frames}")


def check_finite(values: npt.NDArray[Any], frame: int) -> None:
    """Raise ImageError if any value is NaN or infinite."""
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise ImageError(
            ErrorCode.NON_FINITE_PIXELS, f"frame {frame}: {bad} of {values.size} values are NaN or infinite"
        )


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
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, f"{library}: does not fit in memory") from None
    except (EOFError, struct.error):  # the latter: fewer bytes than a field has
        raise ImageError(ErrorCode.TRUNCATED, f"{library}: the object ends too early") from None
    except DECODER_ERRORS as error:
        raise ImageError(ErrorCode.CORRUPT, f"{library}: {type(error).__name__}") from None
    except BaseException as error:
        # A panic in a decoder written in Rust (pylibjpeg-rle) is no Exception, and its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise ImageError(ErrorCode.CORRUPT, f"{library}: {type(error).__name__}") from None


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
