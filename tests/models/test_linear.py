"""Linear masked inpainting: guesses by hand, the ridge by held-out normals, and what patches are for."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectorkit import batches, build, run_fit
from textures import textures

from models.errors import ConfigError
from models.linear import RIDGES, Linear, _with_mirrored
from models.parts.error_score import WAYS
from models.parts.gaussian import GaussianSums


def linear(size_px: tuple[int, int] = (32, 32), **options: object) -> Linear:
    detector = build("linear", size_px, **{"grid": 16, "cells": (2, 4), **options})
    assert isinstance(detector, Linear)
    return detector


def fitted(detector: Linear, train: torch.Tensor, held_out: torch.Tensor) -> Linear:
    run_fit(detector, batches(train, 7), batches(held_out, 7))
    return detector


def smooth_images(count: int, seed: int, size: int = 32) -> torch.Tensor:
    """Colour images of a few soft shapes in fixed places: 6 numbers say all of each."""
    rng = np.random.default_rng(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    basis = torch.stack([torch.cos(3 * x), torch.sin(3 * y), x * y, torch.cos(4 * x + 3 * y), x, y])
    weights = torch.from_numpy(rng.normal(0, 0.06, (count, 3, len(basis)))).float()
    return (0.5 + torch.einsum("bck,khw->bchw", weights, basis)).clamp(0, 1)


def test_hidden_pixels_are_the_conditional_mean():
    """By numpy, pixel by pixel of one mask, in float64."""
    train, held_out, new = textures(60, 32, 32), textures(20, 32, 32, seed=3), textures(3, 32, 32, seed=5)
    detector = fitted(linear(), train, held_out)
    ridge = float(detector.ridge)
    assert ridge in RIDGES

    def grid(images: torch.Tensor) -> np.ndarray:
        return F.interpolate(images.double(), (16, 16), mode="area").flatten(2).numpy()

    seen, there = grid(torch.cat([train, train.flip(3)]) if detector.mirrored else train), grid(new)
    (found, _) = detector.guesses(detector.patches(new))
    hidden = (np.add.outer(np.arange(16) // 2, np.arange(16) // 2) % 2 == 0).ravel()
    variance = np.mean([np.cov(seen[:, channel].T).diagonal().mean() for channel in range(3)])
    for channel in range(3):
        mean, covariance = seen[:, channel].mean(0), np.cov(seen[:, channel].T) + ridge * variance * np.eye(256)
        gain = np.linalg.solve(covariance[~hidden][:, ~hidden], covariance[~hidden][:, hidden])
        expected = mean[hidden] + (there[:, channel][:, ~hidden] - mean[~hidden]) @ gain
        np.testing.assert_allclose(found[:, 0, channel, hidden], expected.clip(0, 1), atol=1e-5)


def test_images_of_few_numbers_are_guessed_and_what_is_new_in_one_is_not():
    detector = fitted(linear(), smooth_images(200, 0), smooth_images(30, 1))
    normal = smooth_images(8, 2)
    spotted = normal.clone()
    spotted[:, :, 12:20, 12:20] = 0.9
    for guess in detector.guesses(detector.patches(normal)):
        assert (guess - detector.patches(normal)).abs().max() < 0.02
    found = detector.score(torch.cat([normal, spotted]))
    assert found.image[8:].min() > found.image[:8].max() + 5
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[12:20, 12:20] = True
    heat = found.heatmap[8:]
    assert (heat[:, inside].mean(1) > 1.5 * heat[:, ~inside].mean(1)).all()


def test_the_ridge_is_the_one_whose_guesses_of_held_out_images_err_least():
    """As it is told from second moments; here from the guesses themselves."""
    torch.manual_seed(0)
    noise = 0.05 * torch.randn(230, 3, 32, 32)
    noisy = (smooth_images(230, 0) + noise).clamp(0, 1)
    errors, chosen = {}, float(fitted(linear(), noisy[:30], noisy[30:]).ridge)
    for ridge in RIDGES:
        detector = linear()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("models.linear.RIDGES", (ridge,))
            fitted(detector, noisy[:30], noisy[30:])
        patches = detector.patches(noisy[30:])
        errors[ridge] = sum(float((guess - patches).square().mean()) for guess in detector.guesses(patches))
    # Few images of much noise need more of it than many of little.
    assert chosen == min(errors, key=lambda ridge: errors[ridge]) > RIDGES[0]
    assert float(fitted(linear(), smooth_images(300, 0), smooth_images(30, 1)).ridge) == RIDGES[0]


def test_mirror_images_are_normal_where_that_guesses_held_out_ones_better():
    def blobs(count: int, seed: int, *, either_side: bool) -> torch.Tensor:
        """A spot in the left half of each image, or of every second one in the right half."""
        rng = np.random.default_rng(seed)
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        images = torch.empty(count, 3, 32, 32)
        for image in images:
            top, left, height = rng.uniform(8, 24), rng.uniform(5, 11), rng.uniform(0.2, 0.8)
            image[:] = height * torch.exp(-((y - top) ** 2 + (x - left) ** 2) / 18)
        if either_side:
            images[::2] = images[::2].flip(3)
        return images

    for either_side in (True, False):
        detector = fitted(linear(), *(blobs(n, n, either_side=either_side) for n in (40, 30)))
        assert bool(detector.mirrored) == either_side


@pytest.mark.parametrize("patch", [0, 8])
def test_sums_of_mirror_images_are_those_of_mirrored_images(patch: int):
    images = textures(9, 32, 32)
    detector = linear(patch=patch)
    sums, both = (GaussianSums(3, math.prod(detector.patch)) for _ in range(2))
    sums.add(detector.patches(images).flatten(0, 1))
    both.add(detector.patches(torch.cat([images, images.flip(3)])).flatten(0, 1))
    found = _with_mirrored(sums, detector.patch)
    torch.testing.assert_close(found.mean(), both.mean())
    torch.testing.assert_close(found.covariance(), both.covariance())


def test_patches_say_what_is_normal_wherever_it_lies():
    """Stripes at any phase: one Gaussian of the whole image knows none of them, one of its patches knows all."""

    def stripes(count: int, seed: int) -> torch.Tensor:
        phase = torch.from_numpy(np.random.default_rng(seed).uniform(0, 6.28, (count, 1, 1, 1))).float()
        x = torch.arange(64.0).view(1, 1, 1, -1)
        return (0.5 + 0.3 * torch.sin(0.4 * x + phase)).expand(-1, 3, 64, -1)

    train, held_out, normal = stripes(12, 0), stripes(8, 1), stripes(8, 2)
    broken = normal.clone()
    broken[:, :, 28:36, 28:36] = normal[:, :, 28:36, 28:36].mean((2, 3), keepdim=True)
    detector = fitted(linear((64, 64), grid=64, patch=16, cells=(2, 4)), train, held_out)
    whole = detector.patches(normal)
    torch.testing.assert_close(detector.whole(whole), normal.double())
    assert whole.shape == (8, 49, 3, 256)
    found = detector.score(torch.cat([normal, broken])).image
    assert found[8:].min() > found[:8].max()


@pytest.mark.parametrize("size", [(32, 64), (64, 24), (48, 48)])
@pytest.mark.parametrize("patch", [0, 8])
def test_any_shape_has_a_grid_of_as_many_pixels(size: tuple[int, int], patch: int):
    detector = linear(size, grid=32, patch=patch)
    height, width = detector.grid
    assert 0.7 < height * width / 32**2 < 1.4
    assert min(height, width) >= 16
    images = textures(2, *size)
    assert detector.whole(detector.patches(images)).shape == (2, 3, height, width)
    assert detector.score(images).heatmap.shape == (2, *size)


def test_images_all_alike_are_normal_and_another_is_not():
    grey = torch.full((6, 3, 32, 32), 0.4)
    detector = fitted(linear(), grey, grey[:2])
    other = textures(1, 32, 32)
    scores = detector.score(torch.cat([grey[:1], other])).image
    assert scores[0] == pytest.approx(0, abs=1e-5)
    assert 0.05 < scores[1] < 100


@pytest.mark.parametrize("way", WAYS)
def test_a_way_can_be_asked_for(way: str):
    detector = fitted(linear(score=way), textures(20, 32, 32), textures(4, 32, 32, seed=1))
    assert list(WAYS)[int(detector.error_score.way)] == way


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"grid": 128}, r"up to 4096 pixels.*grid=128, which is \d+x\d+ of an image"),
        ({"patch": 7}, "even"),
        ({"grid": 16, "patch": 32}, "at most the grid's"),
        ({"cells": (9,)}, "half as wide"),
        ({"cells": (0,)}, "half as wide"),
        ({"patch": 8, "cells": (8,)}, "half as wide"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, object], rule: str):
    with pytest.raises(ConfigError, match=rule):
        linear(**options)


def test_every_pixel_is_hidden_once_for_each_size_of_cells():
    for patch, cells in itertools.product((0, 8), ((2,), (2, 4))):
        detector = linear(patch=patch, cells=cells)
        for first in range(0, len(detector.masks), 2):
            assert torch.equal(detector.masks[first], ~detector.masks[first + 1])
        assert len(detector.masks) == 2 * len(cells)


def test_an_oblong_image_has_no_more_pixels_than_a_square_one():
    """The shorter side of the grid has a least length, so that a long one may be longer than `grid` says."""
    with pytest.raises(ConfigError, match=r"which is 32x362 of an image of 16x512\. Choose a smaller one with"):
        build("linear", (16, 512), grid=64, cells=(8, 16))
    assert build("linear", (16, 512), grid=32).score(textures(1, 16, 512)).heatmap.shape == (1, 16, 512)
