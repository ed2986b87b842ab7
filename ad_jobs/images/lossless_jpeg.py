"""Whether all of a lossless JPEG was decoded: its values tell how many bits its code stream must have.

libjpeg fills what is missing and goes on, and no binding tells its warnings at more than eight bits.
Each value has one code (ITU-T T.81 annex H), so that the bits can be counted again.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from ad_jobs.images.codestream import JpegFrame, segments

LOSSLESS = 0xC3
_TABLES, _RESTART, _SCAN = 0xC4, 0xDD, 0xDA


def surplus_bytes(code: bytes, frame: JpegFrame, values: npt.NDArray[Any]) -> tuple[int, bytes] | None:
    """How many bytes the scan has beyond those that `values` [rows, columns] take (below 0: too few), and these bytes.

    None for what is not counted here: several components, restart intervals, and code streams of several scans.
    """
    if frame.marker != LOSSLESS or frame.components != 1 or values.ndim != 2:
        return None
    tables: dict[int, bytes] = {}
    for marker, start, end in segments(code):
        if marker == _TABLES:
            tables |= _huffman_tables(code[start + 4 : end])
        elif marker == _RESTART:
            return None
        elif marker == _SCAN:
            # T.81 B.2.3: one component, its table, the predictor, and the point transform.
            table, predictor, transform = code[start + 6] >> 4, code[end - 3], code[end - 1] & 15
            # T.81 B.1.1.2: any number of bytes FF may stand before a marker.
            scan = code[end : code.find(b"\xff\xd9", end)].rstrip(b"\xff")
            if code[start + 4] != 1 or table not in tables or not 1 <= predictor <= 7:
                return None
            bits = _bits(values >> transform if transform else values, predictor, frame.bits - transform, tables[table])
            # T.81 B.1.1.5: a byte FF is followed by a stuffed zero.
            surplus = len(scan) - scan.count(b"\xff\x00") - (bits + 7) // 8
            return surplus, scan[len(scan) - surplus :] if surplus > 0 else b""
    return None


def _huffman_tables(content: bytes) -> dict[int, bytes]:
    """Of each table in a DHT segment, by its number: the code length of each category 0 to 16 (T.81 B.2.4.2)."""
    found, offset = {}, 0
    while offset + 17 <= len(content):
        counts = content[offset + 1 : offset + 17]
        categories = content[offset + 17 : offset + 17 + sum(counts)]
        # Longer than any code: what is in no table was not decoded.
        lengths = bytearray([64] * 17)
        of_codes = [length for length, count in enumerate(counts, 1) for _ in range(count)]
        for category, length in zip(categories, of_codes, strict=False):
            if category <= 16:
                lengths[category] = length
        found[content[offset]] = bytes(lengths)
        offset += 17 + sum(counts)
    return found


def _bits(values: npt.NDArray[Any], predictor: int, precision: int, lengths: bytes) -> int:
    """How many bits the differences from their predictions take, T.81 H.1.2."""
    # Differences are modulo 65536; halves need the bit above.
    values = values.astype(np.uint16 if predictor <= 4 else np.int32)
    predicted = np.empty_like(values)
    predicted[0, 0] = 1 << (precision - 1)
    predicted[0, 1:] = values[0, :-1]
    predicted[1:, 0] = values[:-1, 0]
    left, above, corner = values[1:, :-1], values[:-1, 1:], values[:-1, :-1]
    match predictor:
        case 1:
            inner = left
        case 2:
            inner = above
        case 3:
            inner = corner
        case 4:
            inner = left + above - corner
        case 5:
            inner = left + (above - corner >> 1)
        case 6:
            inner = above + (left - corner >> 1)
        case _:
            inner = left + above >> 1
    predicted[1:, 1:] = inner
    difference = (values - predicted).astype(np.uint16, copy=False)
    return int(_bits_of_differences(lengths).take(difference).sum(dtype=np.int64))


@functools.lru_cache(maxsize=8)
def _bits_of_differences(lengths: bytes) -> npt.NDArray[np.uint8]:
    """The bits of each difference modulo 65536: the code of its category, and what tells it from the others there."""
    magnitude = np.abs(np.arange(1 << 16, dtype=np.uint16).astype(np.int16).astype(np.int32))
    category = np.frexp(magnitude)[1]
    # T.81 H.1.2.2: a difference of 32768 has no further bits.
    more = np.where(category < 16, category, 0)
    return (np.frombuffer(lengths, np.uint8)[category] + more).astype(np.uint8)
