"""JPEG 2000 code streams before they are decoded: where they lie, and whether a part of one was zeroed.

OpenJPEG notices a tile part that is cut short, and nothing else: to it a zeroed one is a row of empty packets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ad_jobs.errors import ErrorCode, ImageError

# T.800 A.4.1 and A.5.1: SOC, SIZ.
START = b"\xff\x4f\xff\x51"
# With one component.
SIZ_END = 45
# T.800 A.6.1: a code stream holds at most 32 halved resolutions.
MOST_REDUCED = 1 << 32
_JP2 = b"\x00\x00\x00\x0cjP  "
COD = 0xFF52
START_OF_TILE_PART = 0xFF90
_START_OF_DATA = 0xFF93
# Coded data looks random: as many zeros in a row do not come about.
_ZEROS = 64
_HIGH_THROUGHPUT = 0x40
# Bits by which the transformations may widen a sample, and its sign.
_GAIN = 4


def contiguous(code: bytes) -> bytes:
    """The JPEG 2000 code stream that the bytes are, or that the JP2 file in them holds; no bytes if there is none.

    T.800 annex I: the box with the code stream; the image header box before it binds no decoder.
    """
    if code.startswith(_JP2):
        code = box(code, b"jp2c")
    return code if code.startswith(START) else b""


def box(code: bytes, wanted: bytes) -> bytes:
    """The content of the first box of that type (T.800 I.4); no bytes where there is none."""
    offset = 0
    while offset + 8 <= len(code):
        length, kind = struct.unpack_from(">L4s", code, offset)
        start = offset + 8
        if length == 1 and offset + 16 <= len(code):
            (length,) = struct.unpack_from(">Q", code, offset + 8)
            start = offset + 16
        # The last box may leave its length open.
        end = len(code) if length == 0 else offset + length
        if kind == wanted:
            return code[start:end]
        if end < start:
            return b""
        offset = end
    return b""


def size(code: bytes) -> tuple[int, int]:
    """(rows, columns) of a code stream by its SIZ segment, T.800 A.5.1; raises ImageError where it is cut short."""
    if len(code) < SIZ_END:
        raise ImageError(ErrorCode.TRUNCATED, "the JPEG 2000 stream ends within its header")
    right, bottom, left, top = struct.unpack_from(">LLLL", code, 8)
    return bottom - top, right - left


def components(code: bytes) -> int:
    """How many components a code stream has by its SIZ segment, T.800 A.5.1."""
    return int.from_bytes(code[40:42])


def segments(code: bytes, offset: int) -> Iterator[tuple[int, int]]:
    """Yield (marker, its offset) of each marker segment of a header that goes on at `offset`, T.800 A.1.

    The last is the one that ends the header: of the first tile part, or of a tile part's data.
    """
    while offset + 4 <= len(code):
        marker, length = struct.unpack_from(">HH", code, offset)
        if marker < 0xFF00:
            return
        yield marker, offset
        if marker in (START_OF_TILE_PART, _START_OF_DATA):
            return
        offset += 2 + length


def check_zeros(code: bytes) -> None:
    """Raise ImageError if more zeros follow one another in a code stream than an undamaged one has.

    T.800 B.10.3: a packet without content is a zero bit, in a byte of its own, and a tile may have no others.
    T.814 7.1: of high throughput the magnitudes of a code block stand as they are, and those of a smooth picture are
    zeros; what a block ends with, its lengths, is none, and OpenJPEG refuses a block without.
    """
    if code.find(bytes(_ZEROS + _packets(code) + _block_bytes(code))) >= 0:
        raise ImageError(ErrorCode.CORRUPT, "JPEG 2000: a part of the code stream is zeroed")


def _block_bytes(code: bytes) -> int:
    """As many bytes as the samples of one code block can take, where it is of high throughput; else 0."""
    for marker, offset in segments(code, 2):
        if marker == COD and offset + 14 <= len(code):
            # T.800 A.6.1: exponents of the block's sides less 2, and the block's style, whose bit 6 T.814 A.4 defines.
            width, height, style = code[offset + 10 : offset + 13]
            bits = (code[42] & 0x7F) + 1
            return (bits + _GAIN) << (width & 15) + (height & 15) + 4 >> 3 if style & _HIGH_THROUGHPUT else 0
    return 0


def _packets(code: bytes) -> int:
    """As many packets as one tile can have by the main header: layers x resolutions x components x precincts."""
    rows, columns = size(code)
    for marker, offset in segments(code, 2):
        if marker == COD and offset + 14 <= len(code):
            # T.800 A.6.1: style, progression, layers, transformation, levels, ..., precincts if the style says so.
            length, style, _, layers, _, levels = struct.unpack_from(">HBBHBB", code, offset + 2)
            exponents = code[offset + 14 : offset + 2 + length] if style & 1 else b""
            precincts = 1
            if exponents:
                width, height = min(one & 15 for one in exponents), min(one >> 4 for one in exponents)
                precincts = ((columns >> width) + 2) * ((rows >> height) + 2)
            return layers * (levels + 1) * components(code) * precincts
    return 0
