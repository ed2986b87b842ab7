"""What a JPEG family code stream announces of itself, read from its markers without decoding it."""

from __future__ import annotations

import struct
from typing import NamedTuple

# Start of frame: ITU-T T.81 table B.1 (C0..CF but for DHT, JPG and DAC), and JPEG-LS, T.87 annex C.
_START_OF_FRAME = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
# TEM, RST and SOI carry no length.
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_FILL = 0xFF
# Start of scan and end of image: no frame came before.
_TOO_LATE = frozenset({0xDA, 0xD9})


class JpegFrame(NamedTuple):
    """A JPEG start of frame: the marker's second byte names the process, `end` is the offset of what follows."""

    marker: int
    bits: int
    rows: int
    columns: int
    components: int
    end: int


def jpeg_frame(code: bytes) -> JpegFrame | None:
    """The first start of frame of a JPEG or JPEG-LS stream; None if the bytes end, or go wrong, before it."""
    if code[:2] != b"\xff\xd8":
        return None
    offset = 2
    while offset + 4 <= len(code):
        if code[offset] != 0xFF:
            return None
        marker = code[offset + 1]
        if marker == _FILL:
            offset += 1
        elif marker in _ALONE:
            offset += 2
        elif marker in _START_OF_FRAME:
            if offset + 10 > len(code):
                return None
            bits, rows, columns, components = struct.unpack_from(">BHHB", code, offset + 4)
            (length,) = struct.unpack_from(">H", code, offset + 2)
            return JpegFrame(marker, bits, rows, columns, components, offset + 2 + length)
        elif marker in _TOO_LATE:
            return None
        else:
            offset += 2 + struct.unpack_from(">H", code, offset + 2)[0]
    return None


def codestream_size(code: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream announces; None for other bytes."""
    frame = jpeg_frame(code)
    if frame is not None:
        return frame.rows, frame.columns
    # JPEG 2000, T.800 A.5.1: SOC, SIZ.
    if code[:4] == b"\xff\x4f\xff\x51" and len(code) >= 24:
        right, bottom, left, top = struct.unpack_from(">LLLL", code, 8)
        return bottom - top, right - left
    return None
