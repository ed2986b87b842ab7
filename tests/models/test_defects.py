"""Synthetic defects: each of its own kind, within the image's range, drawn by its seed alone."""

from __future__ import annotations

import pytest
import torch
from textures import textures

from models.parts.defects import KINDS, with_defects


@pytest.mark.parametrize("size", [(32, 48), (64, 64)])
def test_each_kind_changes_a_part_of_the_image_and_no_more(size: tuple[int, int]):
    for seed, image in enumerate(textures(4, *size)):
        found = with_defects(image, seed)
        assert found.shape == (len(KINDS), *image.shape)
        assert found.min() >= 0
        assert found.max() <= 1
        changed = ((found - image).abs().amax(1) > 1e-6).flatten(1).double().mean(1)
        for kind, share in zip(KINDS, changed, strict=True):
            assert 0 < share < 0.5, f"{kind} changes {share:.0%}"


def test_defects_are_drawn_by_seed_alone():
    image = textures(1, 32, 48)[0]
    first = with_defects(image, 7)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(with_defects(image, 7), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(with_defects(image, 8), first)


def test_a_soft_spot_is_brighter_or_darker_as_the_seed_has_it():
    image = torch.full((1, 48, 48), 0.5)
    spots = torch.stack([KINDS["blob"](image, torch.Generator().manual_seed(seed)) for seed in range(20)]) - image
    assert 0 < (spots.amax((1, 2, 3)) > 0.1).sum() < 20
    # Of a flat image there is no other place to paste, and no structure to take away.
    assert torch.equal(KINDS["paste"](image, torch.Generator().manual_seed(0)), image)
    torch.testing.assert_close(KINDS["smooth"](image, torch.Generator().manual_seed(0)), image)
