"""The bytes of a container: read piece by piece, all of one version, and no more of them than the limits allow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ad_jobs.archive.containers_names import Entry
from ad_jobs.errors import ErrorCode, ImageError
from cluster import storage

# Entries of one container, folders included.
MAX_MEMBERS = 1_000_000
# Of all members of one container, unpacked.
MAX_TOTAL_BYTES = 1 << 40
# Unpacked bytes for each byte in the container, beyond what any container may hold.
MAX_RATIO = 200
FREE_BYTES = 64 << 20
# Of one read where entries are looked for: many lie close to each other, others an image apart.
WINDOW_BYTES = 256 << 10


class Replaced(storage.Unreachable):
    """A container was replaced by another while it was read: who reads it anew may have it whole."""


class Pieces:
    """An object of a store, read at any place in windows.

    What is read belongs to one version of it: `etag` is that of the first piece if it was not known before.
    """

    def __init__(self, uri: str, size: int, etag: str | None, within: str | None, window: int = WINDOW_BYTES) -> None:
        self.uri, self.size, self.etag = uri, size, etag
        self._within, self._window_bytes = within, window
        self._start, self._window = 0, b""

    def at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, or as many as there are.

        Raises:
            StorageError: as `storage.fetch`; Replaced where the object is another one by now.
        """
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._window):
            wanted = min(max(length, self._window_bytes), self.size - offset)
            if offset < 0 or wanted <= 0:
                return b""
            piece = storage.fetch_piece(self.uri, offset, wanted, self._within)
            if piece.etag != self.etag:
                raise Replaced(self.uri, "it was replaced while it was read")
            self._start, self._window, begin = offset, piece.data, 0
        return self._window[begin : begin + length]

    def all(self) -> Iterator[bytes]:
        """Everything from the first byte on, a window at a time."""
        offset = 0
        while piece := self.at(offset, self._window_bytes):
            yield piece
            offset += len(piece)


class Tape(Protocol):
    """Bytes in one direction; `position` is how many lie behind."""

    position: int

    def read(self, length: int) -> bytes:
        """So many bytes, or as many as are left."""

    def skip(self, length: int) -> None:
        """Leave out so many bytes; raises ImageError where there are less."""


class PlainTape:
    """An object of a store as a tape that reads nothing of what is skipped."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.position = 0

    def read(self, length: int) -> bytes:
        """So many bytes, or as many as are left."""
        data = self._pieces.at(self.position, length)
        self.position += len(data)
        return data

    def skip(self, length: int) -> None:
        """Leave out so many bytes; raises ImageError where there are less."""
        self.position += length
        if self.position > self._pieces.size:
            raise cut_off()


def cut_off() -> ImageError:
    """The refusal of what ends too early."""
    return ImageError(ErrorCode.TRUNCATED, "it ends before its content does")


def check_ratio(unpacked: int, packed: int) -> None:
    """Raise ImageError where so many bytes came, or are said to come, of so few."""
    if unpacked > FREE_BYTES and unpacked > MAX_RATIO * packed:
        raise ImageError(
            ErrorCode.TOO_MANY_BYTES,
            f"it unpacks to more than {MAX_RATIO} times its {packed} bytes, which is how bombs are made",
        )


def within_limits(entries: Iterator[Entry], container_bytes: int) -> Iterator[Entry]:
    """The entries as they come; raises ImageError at the one that goes over a limit of its container."""
    total = 0
    for count, entry in enumerate(entries, 1):
        if count > MAX_MEMBERS:
            raise ImageError(ErrorCode.TOO_MANY_BYTES, f"it has more than {MAX_MEMBERS} entries")
        if entry.address is not None:
            total += entry.address.size
            if total > MAX_TOTAL_BYTES:
                raise ImageError(ErrorCode.TOO_MANY_BYTES, f"it unpacks to more than {MAX_TOTAL_BYTES} bytes")
            check_ratio(total, container_bytes)
        yield entry
