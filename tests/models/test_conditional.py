"""Conditional means: against the block formula, for any mask, and by a base that has not seen an image."""

from __future__ import annotations

import pytest
import torch
from textures import textures

from models.parts.conditional import FOLD_RIDGE, FOLDS, RIDGES, ConditionalFit, ConditionalMean
from models.parts.gaussian import GaussianSums
from models.parts.masks import checkerboard_masks
from models.runtime import Runtime

SIZE = (8, 12)
PIXELS = SIZE[0] * SIZE[1]
RIDGE = 0.1


def fitted(images: torch.Tensor) -> ConditionalMean:
    sums = GaussianSums(3, PIXELS)
    sums.add(images.flatten(2))
    return ConditionalMean(3, PIXELS).fit(sums, RIDGE)


@pytest.mark.parametrize("mask", [checkerboard_masks(2, SIZE)[0], (torch.rand(1, *SIZE) < 0.9).float()])
def test_guesses_are_those_of_the_covariances_blocks(mask: torch.Tensor):
    images, other = textures(30, *SIZE), textures(3, *SIZE, seed=1)
    found = fitted(images)(other, mask)
    hidden = mask.flatten() == 0
    for channel in range(3):
        x = images[:, channel].flatten(1).double()
        covariance = torch.cov(x.T)
        # The ridge is a share of the mean variance of all channels.
        scale = torch.stack([torch.var(images[:, c].flatten(1).double(), 0).mean() for c in range(3)]).mean()
        visible = covariance[~hidden][:, ~hidden] + RIDGE * scale * torch.eye(int((~hidden).sum()))
        away = other[:, channel].flatten(1).double() - x.mean(0)
        guess = x.mean(0)[hidden] + away[:, ~hidden] @ torch.linalg.solve(visible, covariance[~hidden][:, hidden])
        torch.testing.assert_close(found[:, channel].flatten(1)[:, hidden], guess.clamp(0, 1))
    assert torch.equal(found.flatten(2)[..., ~hidden], other.double().flatten(2)[..., ~hidden])


def test_what_is_hidden_has_no_part_in_its_guess():
    base, mask = fitted(textures(30, *SIZE)), checkerboard_masks(4, SIZE)[1]
    image = textures(2, *SIZE, seed=1)
    assert torch.equal(base(image, mask), base(torch.where(mask > 0, image, 1 - image), mask))


def test_nothing_hidden_is_the_image_and_all_hidden_the_mean():
    images = textures(30, *SIZE)
    base = fitted(images)
    assert torch.equal(base(images[:2], torch.ones(1, *SIZE)), images[:2].double())
    torch.testing.assert_close(base(images[:1], torch.zeros(1, *SIZE))[0], images.double().mean(0))


def test_images_that_are_all_alike_have_a_base():
    image = textures(1, *SIZE)
    found = fitted(image.repeat(4, 1, 1, 1))(image, checkerboard_masks(2, SIZE)[0])
    torch.testing.assert_close(found, image.double())


@pytest.mark.parametrize("mirrored", [True, False])
def test_an_image_is_guessed_by_what_has_not_seen_it(mirrored: bool):
    images, positions, mask = textures(20, *SIZE), torch.arange(20), checkerboard_masks(4, SIZE)[0]
    fit = ConditionalFit(ConditionalMean(3, PIXELS), Runtime(), mirrored=mirrored)
    fit.count(images, positions)
    fit.try_out(textures(4, *SIZE, seed=2), mask.unsqueeze(0))
    assert fit.ridge in RIDGES
    fit.finish()
    found = fit.guess(images, positions, mask)
    for fold in range(FOLDS):
        others = images[positions % FOLDS != fold]
        sums = GaussianSums(3, PIXELS)
        sums.add((torch.cat([others, others.flip(3)]) if mirrored else others).flatten(2))
        own = positions % FOLDS == fold
        expected = ConditionalMean(3, PIXELS).fit(sums, FOLD_RIDGE)(images[own], mask)
        torch.testing.assert_close(found[own], expected.float())
