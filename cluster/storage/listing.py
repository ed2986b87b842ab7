"""Listings in one order, whatever the store: by URI, code point by code point.

Object ids are positions in this order, so it must not depend on the order of a directory's inodes, on the locale, or on
a server that lists folder by folder instead of key by key.
"""

from __future__ import annotations

import errno
import heapq
import os
import pickle
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, TypeVar

from cluster.storage.contract import LeftOut

T = TypeVar("T")

# Rows held in memory while sorting: about 100 MB of listing entries.
SORT_ROWS = 250_000
# Rows a pickle in the temporary file: what a merge holds of each sorted run.
_SPILL_ROWS = 1_000


class File(NamedTuple):
    """A regular file found by `walk`: its path as the operating system spells it, and its status."""

    path: str
    status: os.stat_result


class Walk:
    """The regular files below a folder, in code-point order of their full paths.

    Memory is bounded by the widest folders on the way down, not by the archive.
    Symbolic links to folders are not followed: what lies inside the root is listed under its real path, and what lies
    outside is not of the archive.
    A link to a file inside the root is listed as a file.
    What is not listed is counted in `left_out` by its kind (`contract.LeftOut`).
    `skip_unreadable`: that goes for what may not be read, too, the root itself apart.

    Raises:
        OSError: the root is missing, or a folder cannot be read; what vanishes meanwhile is no error.
    """

    def __init__(self, root: str, *, skip_unreadable: bool = False) -> None:
        self.root = root
        self.left_out: Counter[LeftOut] = Counter()
        self._skipped = {errno.ENAMETOOLONG, *(_REFUSED if skip_unreadable else ())}

    def __iter__(self) -> Iterator[File]:
        inside = os.path.join(os.path.realpath(self.root), "")  # noqa: PTH118 - names may hold undecodable bytes
        pending = [iter(_entries(self.root))]
        while pending:
            entry = next(pending[-1], None)
            if entry is None:
                pending.pop()
            elif _is_folder(entry):
                with self._counting(entry):
                    pending.append(iter(_entries(entry.path)))
            else:
                status = None
                with self._counting(entry):
                    status = self._status(entry, inside)
                if status is not None:
                    yield File(entry.path, status)

    @contextmanager
    def _counting(self, entry: os.DirEntry[str]) -> Iterator[None]:
        """A block in which what the operating system refuses about an entry is counted, where it is of that kind."""
        try:
            yield
        except OSError as error:
            if entry.is_symlink() and error.errno in _LEADS_NOWHERE | self._skipped:
                self.left_out[LeftOut.LINK] += 1
            elif error.errno in self._skipped:
                self.left_out[LeftOut.TOO_LONG if error.errno == errno.ENAMETOOLONG else LeftOut.UNREADABLE] += 1
            elif not isinstance(error, FileNotFoundError):
                raise
            # It is gone since its folder was read.

    def _status(self, entry: os.DirEntry[str], inside: str) -> os.stat_result | None:
        link = entry.is_symlink()
        if link and not os.path.realpath(entry.path, strict=True).startswith(inside):
            self.left_out[LeftOut.LINK] += 1
            return None
        status = entry.stat()
        if stat.S_ISREG(status.st_mode):
            return status
        self.left_out[LeftOut.LINK if link else LeftOut.SPECIAL] += 1
        return None


# A link's target is missing or below a file, or the link is a loop.
_LEADS_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_REFUSED = {errno.EACCES, errno.EPERM}


def _entries(folder: str) -> list[os.DirEntry[str]]:
    # A folder sorts as its name with "/": "a-b" < "a/x" < "a0", although "a" < "a-b".
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name + "/" if _is_folder(entry) else entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        # Not every filesystem tells a name's type with the name; what refuses to is met again where it is asked for.
        return False


def sort_bounded(items: Iterable[T], key: Callable[[T], Any], rows: int = SORT_ROWS) -> Iterator[T]:
    """`items` in the order of `key`, at most `rows` of them in memory, the rest in a temporary file.

    S3 promises sorted listings, but stores that keep folders list folder by folder, and directory buckets in no order.
    """
    chunk: list[T] = []
    with tempfile.TemporaryFile() as spool:
        starts: list[int] = []
        for item in items:
            chunk.append(item)
            if len(chunk) >= rows:
                starts.append(spool.tell())
                _spill(sorted(chunk, key=key), spool)
                chunk = []
        chunk.sort(key=key)
        if not starts:
            yield from chunk
            return
        ends = [*starts[1:], spool.tell()]
        runs = [_spilled(spool, start, end) for start, end in zip(starts, ends, strict=True)]
        yield from heapq.merge(*runs, chunk, key=key)


def _spill(chunk: list[T], spool: IO[bytes]) -> None:
    for first in range(0, len(chunk), _SPILL_ROWS):
        pickle.dump(chunk[first : first + _SPILL_ROWS], spool, protocol=pickle.HIGHEST_PROTOCOL)


def _spilled(spool: IO[bytes], start: int, end: int) -> Iterator[Any]:
    while start < end:
        # The runs share one file and are read in turns.
        spool.seek(start)
        batch = pickle.load(spool)
        start = spool.tell()
        yield from batch
