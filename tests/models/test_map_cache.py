"""Maps kept by position: all of a batch or none, in any order, and no more than there is memory for."""

from __future__ import annotations

import torch

from models.parts.map_cache import MapCache


def maps(*positions: int) -> list[torch.Tensor]:
    """Two maps an image, 768 KiB together, filled with the image's position."""
    values = torch.tensor(positions, dtype=torch.float32).view(-1, 1, 1, 1)
    return [values.expand(-1, 2, 256, 256), -values.expand(-1, 1, 256, 256)]


def test_rows_are_found_by_position_in_any_order():
    cache = MapCache(8)
    cache.keep([4, 7, 2], maps(4, 7, 2))
    found = cache.find([2, 4])
    assert found is not None
    for layer, wanted in zip(found, maps(2, 4), strict=True):
        assert torch.equal(layer, wanted)


def test_a_batch_with_an_unknown_image_is_not_found():
    cache = MapCache(8)
    cache.keep([0, 1], maps(0, 1))
    assert cache.find([0, 1, 2]) is None
    assert cache.find([]) is None


def test_what_is_beyond_the_memory_is_not_kept():
    cache = MapCache(2)
    cache.keep([0, 1, 2], maps(0, 1, 2))
    assert cache.find([0, 1]) is not None
    assert cache.find([2]) is None
    assert MapCache(0).find([0]) is None


def test_what_is_kept_does_not_follow_its_batch():
    cache, batch = MapCache(8), [torch.ones(1, 1, 2, 2)]
    cache.keep([0], batch)
    batch[0].zero_()
    found = cache.find([0])
    assert found is not None
    assert bool(found[0].all())
