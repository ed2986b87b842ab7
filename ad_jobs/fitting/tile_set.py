"""The tiles of a set of images, numbered image after image: what a detector learns from where images are cut.

An epoch goes through a few images at a time, so that what is not kept decoded is decoded once, and not for each tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ad_jobs.fitting.image_set import Pixels, Reader
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.images.tiling import Tiling

# Images whose tiles come in one random order. As many may be held decoded.
WINDOW = 16


class TileSet:
    """Which tile is where.

    Args:
        size_px: height and width of every image.
        policy: one that cuts them.
    """

    def __init__(self, size_px: Sequence[tuple[int, int]], policy: PixelPolicy) -> None:
        assert policy.tiles is not None
        self._tiling = Tiling(*policy.size_px, policy.tiles.overlap_px)
        self._size_px = size_px
        # Of each image its first tile, and behind the last the number of all.
        self._first = np.cumsum([0, *(self._tiling.number(*size) for size in size_px)])

    def of(self, images: Sequence[int]) -> list[int]:
        """All tiles of these images."""
        return [tile for image in images for tile in range(self._first[image], self._first[image + 1])]

    def image(self, tile: int) -> int:
        """The image that it is of."""
        return int(np.searchsorted(self._first, tile, side="right")) - 1

    def cut(self, tile: int, pixels: Pixels) -> Pixels:
        """The tile of its image's pixels: a view."""
        image = self.image(tile)
        return self._tiling.cut(pixels, self._tiling.corners(*self._size_px[image])[tile - self._first[image]])

    def shuffled(self, tiles: Sequence[int], rng: np.random.Generator) -> NDArray[np.int64]:
        """An order of these tiles: images in a random one, and of WINDOW of them at a time the tiles in a random one.

        It holds places in `tiles`.
        """
        places: dict[int, list[int]] = {}
        for place, tile in enumerate(tiles):
            places.setdefault(self.image(tile), []).append(place)
        images = rng.permutation(list(places))
        windows = (images[start : start + WINDOW] for start in range(0, len(images), WINDOW))
        return np.concatenate(
            [rng.permutation([place for one in window for place in places[one]]) for window in windows]
        )


class TileReader:
    """Tiles by number, in any order; an image is read once for all of its tiles among those of a few images."""

    def __init__(self, reader: Reader, tiles: TileSet) -> None:
        self._reader, self._tiles = reader, tiles

    def read(self, positions: Sequence[int]) -> Iterator[Pixels]:
        """The tiles in this order.

        Raises:
            JobError: as `Reader.read`.
        """
        start = 0
        while start < len(positions):
            images: dict[int, Any] = {}
            end = start
            while end < len(positions):
                image = self._tiles.image(positions[end])
                if image not in images and len(images) == WINDOW:
                    break
                images[image] = None
                end += 1
            with closing(self._reader.read(list(images))) as found:
                images = dict(zip(images, found, strict=True))
            for tile in positions[start:end]:
                yield self._tiles.cut(tile, images[self._tiles.image(tile)])
            start = end
