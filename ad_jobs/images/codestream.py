"""What a code stream announces of itself, read from its markers without decoding it, and whether it ends.

Decoders allocate what the code stream says, whatever the header around it says: it is the code stream that is judged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ad_jobs.images import jpeg2000
from ad_jobs.images.picture import check_samples, check_size
from ad_jobs.images.policy import Limits

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
# Start of frame: ITU-T T.81 table B.1 (C0..CF but for DHT, JPG and DAC), and JPEG-LS, T.87 annex C.
JPEG_LS = 0xF7
_START_OF_FRAME = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {JPEG_LS}
# TEM, RST and SOI carry no length.
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_FILL = 0xFF
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = 0xD9
# Quantization and Huffman tables, arithmetic conditioning and the restart interval: what decoding a scan takes.
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})


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
    for marker, start, end in segments(code):
        if marker in _START_OF_FRAME:
            if start + 10 > len(code):
                return None
            bits, rows, columns, components = struct.unpack_from(">BHHB", code, start + 4)
            return JpegFrame(marker, bits, rows, columns, components, end)
        if marker == _START_OF_SCAN:
            return None
    return None


def bare_jpeg(code: bytes) -> bytes:
    """A JPEG stream without what does not bear on decoding its scans: application data, comments, stray bytes.

    The spectral limits of a sequential scan, which can be no others (T.81 B.2.3), are what they must be.
    """
    kept, sequential = [SOI], False
    for marker, start, end in segments(code):
        if marker == _START_OF_SCAN:
            scan = code[start : end - 3] + b"\x00\x3f\x00" if sequential else code[start:end]
            return b"".join([*kept, scan, code[end:]])
        if marker in _START_OF_FRAME or marker in _TABLES:
            kept.append(code[start:end])
            sequential = sequential or marker in (0xC0, 0xC1)
    return code


def called_eight_bits(code: bytes) -> bytes:
    """A JPEG stream whose frame header says 8 bits, whatever it said."""
    for marker, start, _ in segments(code):
        if marker in _START_OF_FRAME:
            return b"".join([code[: start + 4], b"\x08", code[start + 5 :]])
    return code


def has_scan(code: bytes) -> bool:
    """Whether coded data of a first scan follows in a JPEG stream."""
    return any(marker == _START_OF_SCAN and end < len(code) for marker, _, end in segments(code))


def segments(code: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker's second byte, its offset, the end) of each marker segment of a JPEG stream up to the first scan's.

    As decoders do, it passes over stray bytes between segments.
    """
    if code[:2] != SOI:
        return
    offset = 2
    while (offset := code.find(b"\xff", offset)) >= 0 and offset + 4 <= len(code):
        marker = code[offset + 1]
        if marker == _FILL:
            offset += 1
        elif marker == 0 or marker in _ALONE:
            offset += 2
        elif marker == _END_OF_IMAGE:
            return
        else:
            end = offset + 2 + int(struct.unpack_from(">H", code, offset + 2)[0])
            yield marker, offset, end
            if marker == _START_OF_SCAN:
                return
            offset = end


def check_code(code: bytes, limits: Limits) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS, JPEG 2000 (also in JP2) or JPEG XL stream announces; None for others.

    Raises:
        ImageError: they, or its samples, are more than a limit.
    """
    frame = jpeg_frame(code)
    if frame is not None:
        size, components = (frame.rows, frame.columns), frame.components
    elif contiguous := jpeg2000.contiguous(code):
        size, components = jpeg2000.size(contiguous), jpeg2000.components(contiguous)
    else:
        found = _jpegxl_size(code)
        if found is None:
            return None
        size, components = found, 1
    check_size(*size, limits)
    check_samples(*size, components, limits)
    return size


def has_end(code: bytes) -> bool:
    """Whether a JPEG family stream has its end marker; within coded data the two bytes cannot occur (stuffing)."""
    frame = jpeg_frame(code)
    # The search starts behind the frame header: a thumbnail before it has an end of its own.
    return code.find(EOI, frame.end if frame is not None else 0) >= 0


def with_end(code: bytes) -> bytes:
    """The stream itself, or a copy with the end marker that it lacks."""
    return code if has_end(code) else code + EOI


# ISO/IEC 18181-1, size header: widths by aspect ratio 1 to 7, as (numerator, denominator) of the height.
_JPEGXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_JPEGXL_BITS = (9, 13, 18, 30)


def _jpegxl_size(code: bytes) -> tuple[int, int] | None:
    if code[4:8] == b"JXL ":
        # ISO/IEC 18181-2: the code stream is one box, or begins in the first of several, behind its four-byte index.
        code = jpeg2000.box(code, b"jxlc") or jpeg2000.box(code, b"jxlp")[4:]
    if code[:2] != b"\xff\x0a" or len(code) < 12:
        return None
    bits, offset = int.from_bytes(code[2:12], "little"), 0

    def take(count: int) -> int:
        nonlocal offset
        value = bits >> offset & (1 << count) - 1
        offset += count
        return value

    def side(small: int) -> int:
        return 8 * (take(5) + 1) if small else take(_JPEGXL_BITS[take(2)]) + 1

    small = take(1)
    rows = side(small)
    ratio = take(3)
    if ratio == 0:
        return rows, side(small)
    numerator, denominator = _JPEGXL_RATIOS[ratio - 1]
    return rows, rows * numerator // denominator
