"""gzip (RFC 1952): one object, or a whole TAR, which is unpacked once into a file that goes with its process.

There is no way to a member of such a TAR but through all that lies before it. Every process that reads members
therefore unpacks it once, onto its local disk, and reads them there: N members cost one pass a process, not N.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from ad_jobs.archive.containers_names import NotAContainer
from ad_jobs.archive.containers_reading import MAX_TOTAL_BYTES, Pieces, check_ratio, cut_off
from ad_jobs.errors import ErrorCode, ImageError, JobError
from cluster import storage

MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20
# Of one read where all of it is read.
_STREAM_BYTES = 8 << 20
# The one whose members are read, and the next.
_KEPT = 2


def inflated(packed: Iterable[bytes]) -> Iterator[bytes]:
    """What gzip data unpacks to, in pieces of a mebibyte at most; zeros behind it are padding.

    Raises:
        NotAContainer: this is no gzip data.
        ImageError: it is truncated or damaged, or unpacks to more than any image does.
    """
    went_in = came_out = 0
    engine = None
    for piece in packed:
        went_in += len(piece)
        if engine is None and went_in == len(piece) and not piece.startswith(MAGIC):
            raise NotAContainer
        while piece:
            if engine is None:
                # 2.2: members simply follow each other.
                piece = piece.lstrip(b"\0") if came_out else piece
                if not piece:
                    break
                engine = zlib.decompressobj(16 + zlib.MAX_WBITS)
            try:
                data = engine.decompress(piece, _CHUNK_BYTES)
            except zlib.error as error:
                raise ImageError(ErrorCode.CORRUPT, f"it cannot be unpacked ({error})") from error
            came_out += len(data)
            check_ratio(came_out, went_in)
            if data:
                yield data
            piece = engine.unused_data if engine.eof else engine.unconsumed_tail
            engine = None if engine.eof else engine
    if not went_in:
        raise NotAContainer
    if engine is not None:
        raise cut_off()


def unpacked(packed: bytes, max_bytes: int) -> bytes:
    """The one object in gzip data; raises ImageError as `inflated`, and where it has more than `max_bytes`."""
    data = bytearray()
    try:
        for piece in inflated([packed] if packed else []):
            data += piece
            if len(data) > max_bytes:
                raise ImageError(ErrorCode.TOO_MANY_BYTES, f"it unpacks to more than the limit of {max_bytes}")
    except NotAContainer as error:
        # Of nothing comes nothing: it is said to be empty.
        if packed:
            raise _no_gzip() from error
    return bytes(data)


def _no_gzip() -> ImageError:
    return ImageError(ErrorCode.CORRUPT, "it is no gzip, whatever its name says")


def _unreadable(error: ImageError) -> ImageError:
    return ImageError(ErrorCode.UNREADABLE_CONTAINER, f"its container: {error.detail}")


def beginning(packed: bytes, length: int) -> bytes:
    """The first bytes of the one object in gzip data, of which `packed` has the beginning; raises as `unpacked`."""
    found = b""
    # RFC 1952 2.2: one member after the other, as parts of one file.
    while packed and len(found) < length:
        engine = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            found += engine.decompress(packed, length - len(found))
        except zlib.error as error:
            raise ImageError(ErrorCode.CORRUPT, f"it cannot be unpacked ({error})") from error
        packed = engine.unused_data.lstrip(b"\0")
    return found


class UnpackingTape:
    """A compressed TAR as a tape: what is skipped is unpacked, too, and dropped."""

    def __init__(self, pieces: Pieces) -> None:
        self._data = inflated(pieces.all())
        self._left = b""
        self.position = 0

    def read(self, length: int) -> bytes:
        """So many bytes, or as many as are left."""
        parts = []
        while length and (part := self._next(length)):
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def skip(self, length: int) -> None:
        """Leave out so many bytes; raises ImageError where there are less."""
        while length:
            part = self._next(length)
            if not part:
                raise cut_off()
            length -= len(part)

    def drain(self) -> None:
        """Go to the end: that the data is whole, its CRC says there."""
        while self._next(_CHUNK_BYTES):
            pass

    def _next(self, length: int) -> bytes:
        if not self._left:
            self._left = next(self._data, b"")
        part, self._left = self._left[:length], self._left[length:]
        self.position += len(part)
        return part


def stream(uri: str, size: int, etag: str | None, within: str | None) -> Pieces:
    """The pieces of an object that is read from its first byte to its last."""
    return Pieces(uri, size, etag, within, _STREAM_BYTES)


class UnpackedTar:
    """A compressed TAR, unpacked into a file without a name: the system frees it whatever ends the process."""

    def __init__(self, info: storage.ObjectInfo, within: str | None) -> None:
        self.info = info
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with its last reader
        # Why it could not be unpacked: found out once, and told of every member.
        self._refused: ImageError | None = None
        try:
            self._unpack(stream(info.uri, info.bytes, info.etag, within))
        except NotAContainer:
            self._refused = _unreadable(_no_gzip())
        except ImageError as error:
            self._refused = _unreadable(error)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise JobError(
                f"A compressed TAR is unpacked onto the local disk, which is full: {tempfile.gettempdir()}.",
                "Make room, set TMPDIR to a larger disk, or write the TAR anew without compression or as a ZIP.",
            ) from error

    def _unpack(self, pieces: Pieces) -> None:
        total = 0
        for piece in inflated(pieces.all()):
            total += len(piece)
            if total > MAX_TOTAL_BYTES:
                raise ImageError(ErrorCode.TOO_MANY_BYTES, f"it unpacks to more than {MAX_TOTAL_BYTES} bytes")
            self._file.write(piece)
        self._file.flush()

    def at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` of what was unpacked, or as many as there are.

        Raises:
            ImageError: it could not be unpacked.
        """
        if self._refused is not None:
            raise self._refused
        return os.pread(self._file.fileno(), length, offset)


class OfContainer(Protocol):
    """What is made of a container as it was at one moment."""

    info: storage.ObjectInfo


T = TypeVar("T", bound=OfContainer)


class Kept(Generic[T]):
    """What is made once of a container and is of use to its next members; the two used last are kept."""

    def __init__(self, make: Callable[[storage.ObjectInfo, str | None], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, T] = OrderedDict()

    def get(self, uri: str, within: str | None) -> T:
        """The one of this container as it is now, the one that is here or a new one; threads wait for each other."""
        now = storage.stat(uri)
        with self._lock:
            found = self._kept.get(uri)
            if found is None or (found.info.etag, found.info.bytes) != (now.etag, now.bytes):
                # What is no longer used goes before the next one needs its room.
                self._kept.pop(uri, None)
                while len(self._kept) >= _KEPT:
                    self._kept.popitem(last=False)
                found = self._kept[uri] = self._make(now, within)
            self._kept.move_to_end(uri)
            return found
