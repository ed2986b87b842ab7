"""Where the tiles of an image lie, and how what is found in them becomes that of the image.

The same tile gives the same numbers wherever it lies, and images of any size are cut.
Where tiles overlap, each counts the less the nearer its edge is: what a network sees there is half of it padding.
Of the greater of both values, seams show as bands of normal pixels that look warm.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ad_jobs.images.geometry import Geometry
from ad_jobs.images.policy import PixelPolicy

# Side of the cells of a stitched heatmap that a run keeps, in pixels of the image as it was cut.
STORED_CELL_PX = 4
# Whether a score is its heatmap's maximum, both in float32.
SAME = 1e-5


class Tiling(NamedTuple):
    """Tiles of one size that cover an image of any size no smaller than they: heights and widths, in pixels.

    Neighbours overlap by `overlap_px` or more, all of them by about the same; the outermost lie flush with the border.
    """

    height_px: int
    width_px: int
    overlap_px: int

    def corners(self, height: int, width: int) -> list[tuple[int, int]]:
        """The top left pixel (row, column) of every tile of an image of `height` x `width`, row after row.

        Raises:
            ValueError: the image is smaller than a tile.
        """
        rows, columns = self._starts(height, width)
        return [(top, left) for top in rows for left in columns]

    def number(self, height: int, width: int) -> int:
        """How many tiles an image of `height` x `width` has."""
        rows, columns = self._starts(height, width)
        return len(rows) * len(columns)

    def _starts(self, height: int, width: int) -> tuple[list[int], list[int]]:
        return _starts(height, self.height_px, self.overlap_px), _starts(width, self.width_px, self.overlap_px)

    def cut(self, pixels: NDArray[Any], corner: tuple[int, int]) -> NDArray[Any]:
        """The tile of an image [..., H, W] at this corner: a view of its pixels."""
        top, left = corner
        return pixels[..., top : top + self.height_px, left : left + self.width_px]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length < tile:
        raise ValueError(f"An image is no smaller than its tiles. Got: {length} px, tiles of {tile}. Pad it first.")
    gaps = -(-(length - tile) // (tile - overlap))
    return [number * (length - tile) // gaps for number in range(gaps + 1)] if gaps else [0]


@lru_cache(maxsize=64)
def _weights(length: int, tile: int, overlap: int) -> dict[int, NDArray[np.float32]]:
    """By its start, what each pixel of a tile weighs along one axis, [tile]; over each pixel the sum is 1.

    Across an overlap one falls as the other rises, linearly; what one tile sees alone is as it sees it.
    """
    starts = _starts(length, tile, overlap)
    # From the middle of a pixel to the nearer edge of its tile.
    depth = np.minimum(np.arange(tile) + 0.5, tile - 0.5 - np.arange(tile))
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile] += depth
    return {start: (depth / total[start : start + tile]).astype(np.float32) for start in starts}


class Stitch:
    """The score and the heatmap of one image, as its tiles come in, in any order."""

    def __init__(self, tiling: Tiling, height: int, width: int) -> None:
        self._tiling = tiling
        self._down = _weights(height, tiling.height_px, tiling.overlap_px)
        self._across = _weights(width, tiling.width_px, tiling.overlap_px)
        self._largest = -np.inf
        self._by_maximum = True
        self.left = len(self._down) * len(self._across)
        self.heatmap = np.zeros((height, width), np.float32)

    def add(self, corner: tuple[int, int], score: float, heatmap: NDArray[np.float32]) -> None:
        """Count in the tile at `corner`."""
        top, left = corner
        place = self._tiling.cut(self.heatmap, corner)
        place += self._down[top][:, None] * self._across[left] * heatmap
        # NaN is larger than any number.
        self._largest = float(np.maximum(self._largest, score))
        self._by_maximum &= bool(np.isclose(heatmap.max(), score, rtol=SAME, atol=0))
        self.left -= 1

    @property
    def score(self) -> float:
        """The heatmap's maximum, where every tile's score is that of its own; else the largest of the tiles' scores.

        A tile's own maximum may lie at its edge, where the one beside it sees that all is well.
        """
        return float(self.heatmap.max()) if self._by_maximum else self._largest


def to_store(heatmap: NDArray[np.float32], geometry: Geometry, policy: PixelPolicy) -> NDArray[np.float32]:
    """A heatmap [height_px, width_px] as a run keeps it: of one that was stitched the greatest value of every cell.

    It has the size of `geometry_to_store`.
    """
    kept = geometry_to_store(geometry, policy)
    if kept == geometry:
        return heatmap
    box = heatmap[geometry.top : geometry.top + geometry.height, geometry.left : geometry.left + geometry.width]
    rows = np.stack([box[band].max(axis=0) for band in _bands(geometry.height, kept.height)])
    return np.stack([rows[:, band].max(axis=1) for band in _bands(geometry.width, kept.width)], axis=1)


def geometry_to_store(geometry: Geometry, policy: PixelPolicy) -> Geometry:
    """How a heatmap that a run keeps lies over its source.

    Of one that was stitched the padding is left out, and its cells are of equal size, STORED_CELL_PX or a little less.
    """
    if policy.tiles is None:
        return geometry
    height, width = (-(-side // STORED_CELL_PX) for side in (geometry.height, geometry.width))
    return Geometry(geometry.rows, geometry.columns, height, width, 0, 0, height, width)


def _bands(length: int, cells: int) -> Iterator[slice]:
    """Of each cell the pixels that it touches."""
    for cell in range(cells):
        yield slice(cell * length // cells, -(-(cell + 1) * length // cells))
