"""JPEG 2000 and HTJ2K at a half, a quarter, ... of their size: the lower resolutions that a code stream holds.

Decoded by OpenJPEG, like the whole, but through Pillow: imagecodecs does not let it stop early.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ImageFile

from ad_jobs.errors import ImageError
from ad_jobs.images.geometry import Grid
from ad_jobs.images.jpeg2000 import COD, START_OF_TILE_PART, segments
from ad_jobs.images.libraries import foreign

# T.800 A.6.2 and A.6.3: other transformations of a component, and a region of interest.
_COC, _RGN = 0xFF53, 0xFF5E
_OWN_WAYS = frozenset({COD, _COC, _RGN})
# T.801: the extensions of Part 2, the highest bit of Rsiz.
_EXTENDED = 0x8000
# By the number of components and the bytes of a sample.
_MODES = {(1, 1): "L", (1, 2): "I;16", (3, 1): "RGB"}


class _Size(NamedTuple):
    """The SIZ segment, T.800 A.5.1: capabilities, the image's and the tiles' extent and offset, the components."""

    capabilities: int
    right: int
    bottom: int
    left: int
    top: int
    tile_width: int
    tile_height: int
    tile_left: int
    tile_top: int
    components: int


def decode(code: bytes, factor: int) -> tuple[npt.NDArray[Any], Grid] | None:
    """The samples of a code stream at 1 / `factor` of its size, and how they lie over the whole.

    [h, w] or [h, w, 3], in their own bits and sign; reduced by less where it holds fewer resolutions.
    None for what must be decoded whole: a stream without resolutions, with offsets, a region of interest, or tiles or
    components that differ or do not halve; more bits than Pillow passes on; damage, which is the whole's to judge.
    """
    size = _Size(*struct.unpack_from(">HLLLLLLLLH", code, 6))
    described = code[42 : 42 + 3 * size.components]
    sign_and_bits = code[42]
    bits = (sign_and_bits & 0x7F) + 1
    signed = bool(sign_and_bits >> 7)
    mode = _MODES.get((size.components, -(-bits // 8)))
    if mode is None or (signed and size.components > 1) or described != bytes([sign_and_bits, 1, 1]) * size.components:
        return None
    factor = min(factor, 1 << _levels(code))
    if factor == 1 or not _halves(size, factor):
        return None
    # T.800 F.3.2: a low-pass sample lies on every second one of the resolution above, from the first on.
    grid = Grid(size.bottom, size.right, factor, 0.0)
    try:
        with foreign("OpenJPEG"):
            scaled = np.asarray(_Reduced(code, mode, grid))
    except ImageError:
        # Whatever it was: decoding the whole says it, or shows that there is a picture all the same.
        return None
    return _unscaled(scaled, bits, signed=signed), grid


def _unscaled(scaled: npt.NDArray[Any], bits: int, *, signed: bool) -> npt.NDArray[Any]:
    """Samples of `bits` from Pillow's, which fill whole bytes: shifted up, and unsigned by half their range."""
    values = scaled >> (8 * scaled.dtype.itemsize - bits)
    if not signed:
        return values
    return (values.astype(np.int32) - (1 << (bits - 1))).astype(f"i{scaled.dtype.itemsize}")


def _levels(code: bytes) -> int:
    """How often the whole code stream can be halved; 0 where some part of it has a way of its own."""
    levels, start = 0, len(code)
    for marker, offset in segments(code, 2):
        if marker == COD:
            # T.800 A.6.1: style, progression, layers, transformation, levels.
            levels = int.from_bytes(code[offset + 9 : offset + 10])
        elif marker == START_OF_TILE_PART:
            start = offset
        elif marker in _OWN_WAYS:
            return 0
    # T.800 A.4.2: index, length, number; a length of 0 reaches to the end.
    while start + 12 <= len(code) and code[start : start + 2] == START_OF_TILE_PART.to_bytes(2):
        if any(marker in _OWN_WAYS for marker, _ in segments(code, start + 12)):
            return 0
        length = int.from_bytes(code[start + 6 : start + 10])
        start = start + length if length >= 14 else len(code)
    return min(levels, 32)


def _halves(size: _Size, factor: int) -> bool:
    """Whether the image begins where its grid does, by part 1 of the standard, and tiles end at whole pixels."""
    if size.capabilities & _EXTENDED or any((size.left, size.top, size.tile_left, size.tile_top)):
        return False
    one_tile = size.tile_width >= size.right and size.tile_height >= size.bottom
    return one_tile or (size.tile_width % factor == 0 and size.tile_height % factor == 0)


class _Reduced(ImageFile.ImageFile):
    """Pillow's own reader of JPEG 2000 rounds sizes down that OpenJPEG rounds up, and fails at these."""

    def __init__(self, code: bytes, mode: str, grid: Grid) -> None:
        self._wanted = (mode, grid)
        super().__init__(BytesIO(code))

    def _open(self) -> None:
        self._mode, grid = self._wanted
        rows, columns = grid.size
        self._size = (columns, rows)
        # As Pillow's reader: the form of the stream, halvings, all layers, no file descriptor, no known length.
        arguments = ("j2k", grid.factor.bit_length() - 1, 0, -1, -1)
        self.tile = [ImageFile._Tile("jpeg2k", (0, 0, columns, rows), 0, arguments)]
