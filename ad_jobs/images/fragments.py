"""Encapsulated pixel data, PS3.5 A.4: from fragments to the code stream of each frame."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.remarks import Remark

ITEM = b"\xfe\xff\x00\xe0"
_DELIMITER = b"\xfe\xff\xdd\xe0"
# How a code stream begins: JPEG and JPEG-LS, JPEG 2000, and its file format, which has no place here but is met.
JP2 = b"\x00\x00\x00\x0cjP  "
CODE_STREAM_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", JP2)


def is_encapsulated(pixel_data: bytes) -> bool:
    """Whether bytes of pixel data begin as an offset table and a fragment, as no native pixels do."""
    if pixel_data[:4] != ITEM or len(pixel_data) < 16:
        return False
    behind = 8 + int(struct.unpack_from("<L", pixel_data, 4)[0])
    return pixel_data[behind : behind + 4] in (ITEM, _DELIMITER)


def frame_codes(ds: Any, frames: int, remarks: set[str]) -> list[bytes]:
    """The code streams of `ds`, one a frame; fewer or more than `frames` if fewer or more are there.

    Offset tables (PS3.5 A.4, PS3.3 C.7.6.3.1.8) are believed where they lead to starts of as many frames, else frames
    are told by the markers that they start with.

    Raises:
        ImageError: the bytes are not encapsulated, or end within a fragment.
    """
    table, fragments = _fragments(ds.PixelData)
    extended = ds.get("ExtendedOffsetTable") or b""
    for offsets in (_offsets(extended, "Q"), _offsets(table, "L")):
        if not offsets:
            continue
        starts = _starts(offsets, fragments, frames)
        if starts is not None:
            return _joined(fragments, starts)
        remarks.add(Remark.OFFSET_TABLE)
    marked = [index for index, (_, code) in enumerate(fragments) if code.startswith(CODE_STREAM_STARTS)]
    if marked[:1] == [0] and (len(marked) >= frames or len(fragments) != frames):
        return _joined(fragments, marked)
    # RLE has no marker, and a fragment a frame (PS3.5 A.4.2).
    return _joined(fragments, [0] if frames == 1 else list(range(len(fragments))))


def _fragments(pixel_data: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
    """The basic offset table, and each fragment with its offset from the first one's item tag."""
    items: list[tuple[int, bytes]] = []
    offset = 0
    while offset + 8 <= len(pixel_data):
        tag, (length,) = pixel_data[offset : offset + 4], struct.unpack_from("<L", pixel_data, offset + 4)
        if tag == _DELIMITER:
            break
        if tag != ITEM:
            raise ImageError(ErrorCode.CORRUPT, "PixelData is not encapsulated as TransferSyntaxUID says")
        end = offset + 8 + length
        if end > len(pixel_data):
            raise ImageError(ErrorCode.TRUNCATED, "PixelData ends within a fragment")
        items.append((offset, pixel_data[offset + 8 : end]))
        offset = end
    if len(items) < 2:
        raise ImageError(ErrorCode.TRUNCATED, "PixelData has no fragments")
    first = items[1][0]
    return items[0][1], [(offset - first, code) for offset, code in items[1:]]


def _offsets(table: bytes, kind: str) -> list[int]:
    """The entries of an offset table."""
    size = struct.calcsize(f"<{kind}")
    return list(struct.unpack(f"<{len(table) // size}{kind}", table[: len(table) // size * size]))


def _starts(offsets: list[int], fragments: list[tuple[int, bytes]], frames: int) -> list[int] | None:
    """The fragments that an offset table says frames start with; None if it is wrong."""
    numbers = {offset: index for index, (offset, _) in enumerate(fragments)}
    if len(offsets) < frames or offsets[0] != 0 or not all(one < other for one, other in pairwise(offsets)):
        return None
    if not all(offset in numbers for offset in offsets):
        return None
    starts = [numbers[offset] for offset in offsets]
    marked = {index for index, (_, code) in enumerate(fragments) if code.startswith(CODE_STREAM_STARTS)}
    return starts if not marked or marked == set(starts) else None


def _joined(fragments: list[tuple[int, bytes]], starts: list[int]) -> list[bytes]:
    ends = [*starts[1:], len(fragments)]
    return [
        fragments[start][1] if end - start == 1 else b"".join(code for _, code in fragments[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]
