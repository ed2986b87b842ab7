"""Augmentation: every way that a shape allows, how far an image goes, and the same images on every rank."""

from __future__ import annotations

import math

import pytest
import torch

from models.parts.augmentation import augmented, jittered, turned, ways


@pytest.mark.parametrize(("size", "most"), [((8, 8), 8), ((8, 12), 4)])
def test_augmentation_draws_every_way_its_shape_allows(size: tuple[int, int], most: int):
    image = torch.rand(1, 1, *size)
    found = turned(image.repeat(200, 1, 1, 1), ways(200, torch.Generator().manual_seed(0)))
    assert len({tuple(one.flatten().tolist()) for one in found}) == most


def test_images_are_zoomed_shifted_and_given_other_contrasts_each_by_its_own():
    image = torch.full((1, 1, 40, 40), 0.25)
    # A square of 8 px, its centre 4 px to the right of the image's.
    image[:, :, 16:24, 20:28] = 1.0
    drawn = torch.zeros(6, 5)
    drawn[1, 0], drawn[2, 1], drawn[3, 2], drawn[4, 3], drawn[5, 4] = -1.0, 0.5, 1.0, -1.0, 1.0
    how = {"zoom": 0.25, "shift": 0.1, "contrast": 0.5}
    same, larger, left, up, darker, gamma = jittered(image.repeat(6, 1, 1, 1), drawn, **how)[:, 0]
    torch.testing.assert_close(same, image[0, 0])
    assert float((larger > 0.7).sum()) == pytest.approx(64 * 1.25**2, rel=0.1)
    # Half of a tenth of 40 px.
    torch.testing.assert_close(left[16:24, 18:26], torch.ones(8, 8))
    torch.testing.assert_close(up[12:20, 20:28], torch.ones(8, 8))
    torch.testing.assert_close(darker, image[0, 0] * math.exp(-0.5))
    torch.testing.assert_close(gamma, image[0, 0] ** math.exp(0.5))
    bright = jittered(image, torch.ones(1, 5), **how)
    assert float(bright.max()) == 1.0, "nothing leaves the range"


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_without_jitter_an_image_keeps_its_pixels():
    images = torch.rand(6, 1, 8, 8)
    found = augmented(images, seeded(), jitter=False)
    assert not torch.equal(found, images)
    assert torch.equal(found.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    assert not torch.equal(augmented(images, seeded()).flatten(1).sort(1).values, found.flatten(1).sort(1).values)


def test_what_some_rows_get_is_what_they_get_among_all():
    images = torch.rand(6, 1, 8, 8)
    some = augmented(images[[1, 4]], seeded(), rows=[1, 4], of=6)
    assert torch.equal(some, augmented(images, seeded())[[1, 4]])
