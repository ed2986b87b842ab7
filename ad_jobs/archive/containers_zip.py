"""ZIP: its central directory, read from the end as a stream, and one member (PKWARE APPNOTE.TXT 6.3.10).

The directory alone says what is there; local headers are looked at for where a member's bytes begin.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from ad_jobs.archive.containers_names import Address, Entry, NotAContainer, escaped
from ad_jobs.archive.containers_reading import WINDOW_BYTES, Pieces, cut_off
from ad_jobs.errors import ErrorCode, ImageError
from cluster.storage import LeftOut

# 4.3.7 local file header; 4.3.12 central directory header; 4.3.16 end of central directory.
_LOCAL, _ENTRY, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
# 4.3.15 and 4.3.14: of ZIP64.
_LOCATOR64, _END64 = b"PK\6\7", b"PK\6\6"
_LOCAL_BYTES, _ENTRY_BYTES, _END_BYTES, _LOCATOR_BYTES, _END64_BYTES = 30, 46, 22, 20, 56
_MAX_COMMENT = 0xFFFF
# In 16, 32 bits: the value stands in ZIP64's fields.
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
# 4.4.4: general purpose bit 0.
_ENCRYPTED = 1
# 4.4.5.
_STORED, _DEFLATED = 0, 8
# 4.4.2: whose external attributes have a Unix mode in their upper half.
_UNIX = 3
# Read along with a member, for its local header's name and extra fields.
LOCAL_SLACK = 512


class _Directory(NamedTuple):
    """Where the central directory lies, and how many entries it has; `shift` is what lies before the ZIP itself."""

    start: int
    end: int
    entries: int
    zip64: bool
    shift: int


def walk(pieces: Pieces) -> Iterator[Entry]:
    """The entries in the directory's order.

    Raises:
        NotAContainer: this is no ZIP.
        ImageError: it is one that is truncated or damaged, or whose members share their bytes.
    """
    directory = _directory(pieces)
    position, count, held = directory.start, 0, 0
    while position < directory.end:
        header = pieces.at(position, _ENTRY_BYTES)
        if len(header) < _ENTRY_BYTES or not header.startswith(_ENTRY):
            raise _damaged()
        made, crc, stored, size = struct.unpack("<4xH10xLLL18x", header)
        name_bytes, extra_bytes, comment_bytes, attributes, offset = struct.unpack("<28xHHH4xLL", header)
        body = pieces.at(position + _ENTRY_BYTES, name_bytes + extra_bytes)
        name, extra = body[:name_bytes], body[name_bytes:]
        size, stored, offset = _wide(extra, [size, stored, offset])
        position += _ENTRY_BYTES + name_bytes + extra_bytes + comment_bytes
        count += 1
        address = Address(offset + directory.shift, stored, size, crc)
        held += _LOCAL_BYTES + stored
        if address.offset + _LOCAL_BYTES + stored > directory.start:
            raise cut_off()
        # Each is somewhere else in an honest one; of those that are not a few kilobytes make petabytes.
        if held > directory.start:
            raise ImageError(ErrorCode.CORRUPT, "its members share their bytes, which is how bombs are made")
        yield _entry(name, address, attributes >> 16 if made >> 8 == _UNIX else 0)
    wanted = directory.entries if directory.zip64 else directory.entries & _FULL16
    if position != directory.end or wanted != (count if directory.zip64 else count & _FULL16):
        raise _damaged()


def _entry(name: bytes, address: Address, mode: int) -> Entry:
    if name.endswith(b"/"):
        return Entry(escaped(name), None)
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        return Entry(escaped(name), None, LeftOut.LINK)
    if kind not in (0, stat.S_IFREG):
        return Entry(escaped(name), None, LeftOut.SPECIAL)
    return Entry(escaped(name), address)


def _directory(pieces: Pieces) -> _Directory:
    tail_start = max(0, pieces.size - _END_BYTES - _MAX_COMMENT)
    # One read for the whole directory, unless it is a large one.
    pieces.at(max(0, pieces.size - WINDOW_BYTES), 1)
    tail = pieces.at(tail_start, pieces.size - tail_start)
    at = tail.rfind(_END)
    # The comment comes last, and may hold anything.
    while at >= 0 and struct.unpack("<H", tail[at + 20 : at + 22].ljust(2, b"\xff"))[0] != len(tail) - at - _END_BYTES:
        at = tail.rfind(_END, 0, at)
    if at < 0:
        if pieces.at(0, 4) == _LOCAL:
            raise ImageError(ErrorCode.TRUNCATED, "it has no central directory at its end")
        raise NotAContainer
    disk, first_disk, _, entries, size, offset = struct.unpack("<4xHHHHLL2x", tail[at : at + _END_BYTES])
    end = tail_start + at
    wide = _directory64(pieces, end - _LOCATOR_BYTES)
    if wide is not None:
        end, disk, first_disk, entries, size, offset = wide
    if disk or first_disk:
        raise ImageError(ErrorCode.CORRUPT, "it is one of several parts, which belong together")
    start = end - size
    if start < offset:
        raise _damaged()
    return _Directory(start, end, entries, wide is not None, start - offset)


def _directory64(pieces: Pieces, locator_at: int) -> tuple[int, int, int, int, int, int] | None:
    """Where ZIP64's end of the directory lies, and what it says; None where there is none."""
    locator = pieces.at(locator_at, _LOCATOR_BYTES) if locator_at >= 0 else b""
    if not locator.startswith(_LOCATOR64):
        return None
    (stated,) = struct.unpack("<8xQ4x", locator)
    # It lies before its locator where something lies before the ZIP, and its offsets are not the file's.
    for end in (stated, locator_at - _END64_BYTES):
        record = pieces.at(end, _END64_BYTES)
        if record.startswith(_END64) and len(record) == _END64_BYTES:
            disk, first_disk, _, entries, size, offset = struct.unpack("<16xLLQQQQ", record)
            return end, disk, first_disk, entries, size, offset
    raise _damaged()


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Size, stored bytes and offset, from ZIP64's extra field (4.5.3) where 32 bits do not hold them."""
    if _FULL32 not in values:
        return values
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<HH", extra)
        if tag == 1:
            body = extra[4 : 4 + length]
            numbers = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
            wide = [next(numbers, None) if value == _FULL32 else value for value in values]
            if None not in wide:
                return [value for value in wide if value is not None]
            break
        extra = extra[4 + length :]
    raise _damaged()


def _damaged() -> ImageError:
    return ImageError(ErrorCode.CORRUPT, "its central directory is damaged")


def span(address: Address) -> tuple[int, int]:
    """(offset, length) of what is to be read for a member: most likely all of it."""
    return address.offset, _LOCAL_BYTES + LOCAL_SLACK + address.stored


def missing(raw: bytes, address: Address) -> int:
    """How many bytes a member has beyond those read by `span`: its local header may be longer than most."""
    return max(0, _begin(raw) + address.stored - len(raw))


def content(raw: bytes, address: Address) -> bytes:
    """The content of a member, from its local header on.

    Raises:
        ImageError: it is encrypted, compressed by another method than deflate, truncated, or not what the directory
            says.
    """
    packed = raw[_begin(raw) :][: address.stored]
    if len(packed) < address.stored:
        raise cut_off()
    data = packed if _method(raw) == _STORED else _inflated(packed, address.size + 1)
    if len(data) != address.size or zlib.crc32(data) != address.crc:
        raise ImageError(ErrorCode.CORRUPT, "its size or CRC is not the one in its container's directory")
    return data


def beginning(raw: bytes, length: int) -> bytes:
    """The first bytes of a member, of which `raw` has the beginning; raises as `content` does."""
    packed = raw[_begin(raw) :]
    return packed[:length] if _method(raw) == _STORED else _inflated(packed, length)


def _begin(raw: bytes) -> int:
    if len(raw) < _LOCAL_BYTES or not raw.startswith(_LOCAL):
        raise ImageError(ErrorCode.CORRUPT, "it does not lie where its container's directory says")
    return _LOCAL_BYTES + sum(struct.unpack_from("<HH", raw, 26))


def _method(raw: bytes) -> int:
    flags, method = struct.unpack_from("<HH", raw, 6)
    if flags & _ENCRYPTED:
        raise ImageError(ErrorCode.UNSUPPORTED_MEMBER, "it is encrypted")
    if method not in (_STORED, _DEFLATED):
        raise ImageError(ErrorCode.UNSUPPORTED_MEMBER, f"it is compressed by method {method}; read are 0 and 8")
    return int(method)


def _inflated(packed: bytes, length: int) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, length)
    except zlib.error as error:
        raise ImageError(ErrorCode.CORRUPT, f"it cannot be inflated ({error})") from error
