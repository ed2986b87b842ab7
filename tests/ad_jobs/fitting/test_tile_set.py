"""The tiles of a fit: each is numbered once, and an image is read once for those of a few images."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from detectorkit import build
from numpy.typing import NDArray

from ad_jobs.fitting.loop import Batches
from ad_jobs.fitting.tile_set import WINDOW, TileReader, TileSet
from ad_jobs.images.policy import PixelPolicy
from models.runtime import Runtime

POLICY = PixelPolicy.model_validate({"channels": 3, "height_px": 32, "width_px": 48, "tiles": {"overlap_px": 8}})
SIZES = [(32, 48), (56, 48), (56, 100), (32, 90)] * 10
# Of each of the four.
TILES = [1, 2, 6, 3]


class InMemory:
    """Images of one value each, their number; notes what was read."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def read(self, positions: Sequence[int]) -> Generator[NDArray[np.uint16], None, None]:
        for position in positions:
            self.asked.append(position)
            yield np.full((1, *SIZES[position]), position, np.uint16)


def test_every_tile_has_a_number_and_its_own_pixels() -> None:
    tiles = TileSet(SIZES, POLICY)
    assert tiles.of([0, 2, 5]) == [0, *range(3, 9), 13, 14]
    assert [tiles.image(tile) for tile in range(12)] == np.repeat(range(4), TILES).tolist()
    whole = np.arange(56 * 100).reshape(1, 56, 100)
    corners = {int(tiles.cut(tile, whole)[0, 0, 0]) for tile in tiles.of([2])}
    assert corners == {row * 100 + column for row in (0, 24) for column in (0, 26, 52)}
    assert all(tiles.cut(tile, whole).shape == (1, 32, 48) for tile in tiles.of([2]))


def test_an_order_leaves_no_tile_out_and_stays_within_a_few_images() -> None:
    tiles = TileSet(SIZES, POLICY)
    chosen = tiles.of(range(1, 40))
    order = tiles.shuffled(chosen, np.random.default_rng(0))
    assert sorted(order) == list(range(len(chosen)))
    assert order.tolist() == tiles.shuffled(chosen, np.random.default_rng(0)).tolist()
    images = [tiles.image(chosen[place]) for place in order]
    first = {image: images.index(image) for image in images}
    last = {image: len(images) - images[::-1].index(image) for image in images}
    open_at_once = max(sum(first[i] <= at < last[i] for i in first) for at in range(len(images)))
    assert open_at_once <= WINDOW
    assert images[:10] != sorted(images[:10])


def test_an_image_is_read_once_an_epoch() -> None:
    tiles, images = TileSet(SIZES, POLICY), InMemory()
    chosen = tiles.of(range(40))
    order = [chosen[place] for place in tiles.shuffled(chosen, np.random.default_rng(1))]
    found = list(TileReader(images, tiles).read(order))
    assert [int(tile[0, 0, 0]) for tile in found] == [tiles.image(tile) for tile in order]
    assert sorted(images.asked) == list(range(40))


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_ranks_are_the_batches_of_one(world: int) -> None:
    with torch.random.fork_rng():
        detector = build("linear", (32, 48), batch_size=7)
    tiles = TileSet(SIZES, POLICY)
    positions = {"train": tiles.of(range(4, 40)), "held_out": tiles.of(range(4))}

    def batches(rank: int, of: int) -> list[Any]:
        reader, runtime = TileReader(InMemory(), tiles), Runtime(rank=rank, world=of, seed=3)
        return list(Batches(detector, runtime, reader, positions, shuffle=tiles.shuffled).epoch(0, 1, "train"))

    whole, ranks = batches(0, 1), [batches(rank, world) for rank in range(world)]
    assert sum(len(batch.images) for batch in whole) == len(positions["train"])
    for number, batch in enumerate(whole):
        for rank, share in enumerate(ranks):
            assert torch.equal(share[number].images, batch.images[rank::world])
            assert torch.equal(share[number].positions, batch.positions[rank::world])
