"""Where a source pixel lands in a detector's input, and exactly back.

Coordinates are of pixel centres, (0, 0) being the centre of the top-left pixel, y down and x right: a picture of `rows`
rows spans -0.5 to rows - 0.5.
Rows come before columns everywhere.
The source is the picture as displayed, that is after an EXIF or TIFF orientation was applied.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from ad_jobs.images.policy import PixelPolicy

FloatArray = npt.NDArray[np.floating[Any]]


class Grid(NamedTuple):
    """How the pixels of a reduced frame lie over the whole one of `rows` x `columns`.

    Along either axis there is a pixel for every `factor` of the whole frame, a last one for fewer; pixel n is centred
    on position n * factor + offset.
    """

    rows: int
    columns: int
    factor: int
    offset: float

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the reduced frame."""
        return -(-self.rows // self.factor), -(-self.columns // self.factor)

    def transposed(self) -> Grid:
        """That of the same frame with rows for columns."""
        return self._replace(rows=self.columns, columns=self.rows)


class Geometry(NamedTuple):
    """The box of a detector's input that a source fills, in pixels; of a source that is cut into tiles the input is
    what they are cut from, and a heatmap is as large.

    `rows` and `columns` are the source's, `height_px` and `width_px` the input's.
    `top` and `left` are the box's first row and column in the input, `height` and `width` its size.
    `_asdict()` is JSON, `Geometry(**d)` its inverse.
    """

    rows: int
    columns: int
    height_px: int
    width_px: int
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, policy: PixelPolicy, rows: int, columns: int) -> Self:
        """The geometry of a source of `rows` x `columns` under `policy`; padding is split evenly."""
        height_px, width_px = policy.size_px
        if policy.tiles is not None:
            height_px, width_px = policy.tiles.size_px or (rows, columns)
        height, width = height_px, width_px
        if policy.resize == "pad":
            scale = min(height / rows, width / columns)
            # A very long source would round to nothing: it keeps one pixel.
            height = min(height, max(1, round(rows * scale)))
            width = min(width, max(1, round(columns * scale)))
        # A source that is smaller than a tile is padded to one.
        height_px, width_px = max(height_px, policy.height_px), max(width_px, policy.width_px)
        top, left = (height_px - height) // 2, (width_px - width) // 2
        return cls(rows, columns, height_px, width_px, top, left, height, width)

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.height_px, self.width_px

    def source_to_input(self, y: float, x: float) -> tuple[float, float]:
        """Input coordinates of a source position."""
        # Lengths scale, centres do not: half a pixel is added before and taken off after.
        return (
            (y + 0.5) * self.height / self.rows - 0.5 + self.top,
            (x + 0.5) * self.width / self.columns - 0.5 + self.left,
        )

    def input_to_source(self, y: float, x: float) -> tuple[float, float]:
        """Source coordinates of an input position, the inverse of `source_to_input`; padding lies outside."""
        return (
            (y - self.top + 0.5) * self.rows / self.height - 0.5,
            (x - self.left + 0.5) * self.columns / self.width - 0.5,
        )

    def to_input(
        self, pixels: FloatArray, interpolation: Literal["area", "bilinear"] = "area"
    ) -> npt.NDArray[np.float32]:
        """A source [rows, columns] or [rows, columns, C] at the input's size, float32, padding 0.

        Raises:
            ValueError: `pixels` is not of this geometry's source size.
        """
        self._require(pixels, (self.rows, self.columns), "source")
        return self._placed(resize(pixels, self.height, self.width, interpolation))

    def reduced_to_input(self, pixels: FloatArray, grid: Grid) -> npt.NDArray[np.float32]:
        """A frame that was reduced, as `to_input` by area gives it from the whole one but for what was lost.

        Raises:
            ValueError: `pixels` is not of the grid's size, or the grid not of this geometry's source.
        """
        self._require(pixels, grid.size, "reduced source")
        if (grid.rows, grid.columns) != (self.rows, self.columns):
            raise ValueError(
                f"A reduced frame lies over the source of its geometry, {self.rows} x {self.columns}. "
                f"Got: {grid.rows} x {grid.columns}. Use the grid that came with these pixels."
            )
        return self._placed(_from_grid(pixels, grid, self.height, self.width))

    def _placed(self, box: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The box at its place in the input, padding 0."""
        if (self.height, self.width) == (self.height_px, self.width_px):
            return box
        canvas = np.zeros((self.height_px, self.width_px, *box.shape[2:]), np.float32)
        canvas[self.top : self.top + self.height, self.left : self.left + self.width] = box
        return canvas

    def mask_to_input(self, mask: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The share of each input pixel that a source mask (non-zero = marked) covers; padding 0."""
        return np.clip(self.to_input((np.asarray(mask) != 0).astype(np.float32), "area"), 0.0, 1.0)

    def heatmap_to_source(self, heatmap: FloatArray) -> npt.NDArray[np.float32]:
        """A heatmap [height_px, width_px] laid over the source: [rows, columns], same units, padding cut off.

        Raises:
            ValueError: `heatmap` is not of this geometry's input size.
        """
        self._require(heatmap, (self.height_px, self.width_px), "input")
        box = heatmap[self.top : self.top + self.height, self.left : self.left + self.width]
        return resize(box, self.rows, self.columns, "area")

    @staticmethod
    def _require(array: npt.NDArray[Any], size: tuple[int, int], what: str) -> None:
        if array.shape[:2] != size:
            raise ValueError(
                f"The {what} of this geometry has {size[0]} rows and {size[1]} columns. Got: {array.shape}. "
                "Use the geometry that came with these pixels."
            )


def resize(
    pixels: FloatArray, height: int, width: int, interpolation: Literal["area", "bilinear"] = "area"
) -> npt.NDArray[np.float32]:
    """Pixels [H, W] or [H, W, C] at [height, width], float32, antialiased, the same on every machine.

    An axis that shrinks is averaged: `area` weighs each source pixel by the part of it that an output pixel covers (so
    sums are kept), `bilinear` by a triangle as wide as two output pixels.
    An axis that grows is interpolated linearly between pixel centres under both.
    """
    return _along_columns(_along_rows(pixels, height, interpolation), width, interpolation)


def _along_rows(pixels: FloatArray, height: int, interpolation: str) -> npt.NDArray[np.float32]:
    rows = pixels.shape[0]
    if height == rows:
        return np.asarray(pixels, np.float32)
    flat = np.ascontiguousarray(pixels, np.float32).reshape(rows, -1)
    if height < rows and interpolation == "area":
        out = _area(flat, np.arange(height + 1) * rows / height, height / rows)
    else:
        # Pillow's 32-bit float mode sums in double precision and widens the triangle when it shrinks.
        size = (flat.shape[1], height)
        out = np.asarray(Image.fromarray(flat).resize(size, Image.Resampling.BILINEAR))
    return out.reshape(height, *pixels.shape[1:])


def _along_columns(pixels: npt.NDArray[np.float32], width: int, interpolation: str) -> npt.NDArray[np.float32]:
    if width == pixels.shape[1]:
        return pixels
    return np.ascontiguousarray(_along_rows(pixels.swapaxes(0, 1), width, interpolation).swapaxes(0, 1))


def _from_grid(pixels: FloatArray, grid: Grid, height: int, width: int) -> npt.NDArray[np.float32]:
    """The area means of the whole frame's `height` x `width` equal parts, from a reduced one [h, w] or [h, w, C]."""
    for length, parts in ((grid.rows, height), (grid.columns, width)):
        # Edges of pixels lie half a pixel before their centres.
        edges = (np.arange(parts + 1) * length / parts - 0.5 - grid.offset) / grid.factor + 0.5
        flat = np.ascontiguousarray(pixels, np.float32).reshape(len(pixels), -1)
        # The whole frame may end up to half a pixel behind the last reduced one, which stands for that part as well.
        flat = np.concatenate([flat, flat[-1:]])
        means = _area(flat, edges, parts * grid.factor / length)
        # The other axis next; after both they are in order again.
        pixels = means.reshape(parts, *pixels.shape[1:]).swapaxes(0, 1)
    return np.ascontiguousarray(pixels, np.float32)


def _area(flat: npt.NDArray[np.float32], edges: npt.NDArray[np.float64], weight: float) -> npt.NDArray[np.float32]:
    """Exact sums, times `weight`, of the bands of rows of [rows, M] between `edges`: band i from edge i to edge i + 1.

    Row n spans from n to n + 1; edges ascend from 0 or more to at most the number of rows.
    """
    rows, bands = len(flat), len(edges) - 1
    whole = np.minimum(edges.astype(np.int64), rows)
    part = edges - whole
    # Rows between the edges rounded down, then the fractions of the rows that the edges cut.
    # A loop, because np.add.reduceat along the first axis takes ten times as long.
    sums = np.empty((bands, flat.shape[1]))
    for band in range(bands):
        np.add.reduce(flat[whole[band] : whole[band + 1]], axis=0, dtype=np.float64, out=sums[band])
    # The last edge may be the end of the rows, and cuts none.
    cut = part[:, None] * flat[np.minimum(whole, rows - 1)]
    sums -= cut[:-1]
    sums += cut[1:]
    return (sums * weight).astype(np.float32)
