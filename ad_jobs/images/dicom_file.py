"""The bytes of a DICOM file before and around its data set: meta information, deflation, and where it ends."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.libraries import foreign
from ad_jobs.images.policy import Limits
from ad_jobs.images.sniff import LONG_VRS, has_preamble

UNDEFINED_LENGTH = 0xFFFFFFFF
_DEFLATED = "1.2.840.10008.1.2.1.99"
# Of a header, inflated; many are read at once.
HEAD_BYTES = 16 << 20
_PIECE_BYTES = 1 << 20


def check_deflated(data: bytes, limits: Limits) -> bool:
    """Whether the data set is deflated (PS3.5 A.5); inflates it once, piece by piece, against bombs.

    Raises:
        ImageError: it inflates beyond the limit, ends too early, or is damaged.
    """
    meta_end, syntax = file_meta(data)
    if syntax != _DEFLATED:
        return False
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    packed, total = data[meta_end:], 0
    with foreign("deflate"):
        while not inflate.eof:
            piece = inflate.decompress(packed, _PIECE_BYTES)
            total += len(piece)
            if total > limits.max_bytes:
                raise ImageError(ErrorCode.TOO_MANY_BYTES, f"inflates beyond max_bytes {limits.max_bytes}")
            packed = inflate.unconsumed_tail
            if not piece and not packed and not inflate.eof:
                raise ImageError(ErrorCode.TRUNCATED, "the deflated data set ends too early")
    return True


def check_deflated_head(data: bytes) -> None:
    """Raise ImageError where the first bytes of a deflated object inflate to more than any header takes."""
    meta_end, syntax = file_meta(data)
    if syntax != _DEFLATED:
        return
    with foreign("deflate"):
        found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[meta_end:], HEAD_BYTES + 1)
    if len(found) > HEAD_BYTES:
        raise ImageError(ErrorCode.TOO_MANY_BYTES, f"its header inflates beyond {HEAD_BYTES} bytes")


def file_meta(data: bytes) -> tuple[int, str]:
    """Where the file meta information ends, and the transfer syntax in it."""
    # PS3.10 7.1: group 2, in Explicit VR Little Endian whatever follows.
    offset, syntax = 132 if has_preamble(data) else 0, ""
    while data[offset : offset + 2] == b"\x02\x00" and offset + 12 <= len(data):
        if data[offset + 4 : offset + 6] in LONG_VRS:
            start, length = offset + 12, struct.unpack_from("<L", data, offset + 8)[0]
        else:
            start, length = offset + 8, struct.unpack_from("<H", data, offset + 6)[0]
        if data[offset : offset + 4] == b"\x02\x00\x10\x00":
            syntax = data[start : start + length].decode("ascii", "replace").strip("\x00 ")
        offset = start + length
    return offset, syntax


def ends_cleanly(ds: Any, size: int) -> bool:
    """Whether the last element of a data set ends with its `size` bytes; an unfinished one is dropped in reading."""
    last = max((ds.get_item(tag) for tag in ds.keys()), key=_start, default=None)  # noqa: SIM118
    if last is None:
        return False
    length = getattr(last, "length", None)
    # An undefined length: it was read, so its delimiter was there.
    if length is None or length == UNDEFINED_LENGTH:
        return True
    return bool(_start(last) + length == size)


def _start(element: Any) -> int:
    """Where an element's value starts in the stream."""
    return int(getattr(element, "value_tell", None) or getattr(element, "file_tell", None) or 0)
