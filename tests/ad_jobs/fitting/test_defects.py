"""Synthetic defects of each kind: where they are, what they leave as it was, and by what they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from textures import textures

from ad_jobs.fitting.defects import FLAT, KINDS, RADII, VISIBLE, Defect, defective


def image(place: int = 0, channels: int = 1) -> NDArray[np.float32]:
    return textures(place + 1, 48, 64, channels=channels)[place].numpy()


def made(kind: str, of: NDArray[np.float32], seed: int) -> Defect:
    return defective(of, kind, np.random.default_rng(seed))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_what_its_mask_says_and_nothing_else(kind: str, channels: int) -> None:
    normal = image(channels=channels)
    for seed in range(12):
        found = made(kind, normal, seed)
        assert found.image.shape == normal.shape
        assert found.image.dtype == np.float32
        assert found.mask.shape == normal.shape[1:]
        assert found.mask.min() >= 0
        assert found.mask.max() <= 1
        assert found.image.min() >= 0
        assert found.image.max() <= 1
        # A part of the image, and no more.
        assert 0 < (found.mask > 0).mean() < 0.8
        assert np.array_equal(found.image[:, found.mask == 0], normal[:, found.mask == 0])
        assert np.abs(found.image - normal).max() >= VISIBLE * FLAT


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_is_drawn_by_its_generator_alone(kind: str) -> None:
    np.random.seed(1)
    first = made(kind, image(), 7)
    np.random.seed(2)
    assert np.array_equal(made(kind, image(), 7).image, first.image)
    assert not np.array_equal(made(kind, image(), 8).image, first.image)


def test_defects_are_small_and_large_subtle_and_clear() -> None:
    normal = image()
    areas, steps = [], []
    for seed in range(60):
        found = made("blob", normal, seed)
        areas.append((found.mask > 0).mean())
        steps.append(np.abs(found.image - normal).max())
    # The radius, of an ellipse that is at most as wide as long, is drawn between these shares of the shorter side.
    widest = np.pi * (1.3 * RADII[1] * 48) ** 2 / (48 * 64)
    assert min(areas) < 0.03
    assert 0.05 < max(areas) < widest
    assert max(steps) > 2 * min(steps)


def test_defects_lie_where_an_image_has_structure() -> None:
    """In a picture that is empty but for a corner of stripes, most of them are at the stripes."""
    picture = np.zeros((1, 64, 64), np.float32)
    picture[:, 8:28, 8:28] = np.arange(20) % 4 / 4
    masks = [made("blob", picture, seed).mask for seed in range(30)]
    at_stripes = [mask[4:32, 4:32].sum() > mask.sum() / 3 for mask in masks]
    assert np.mean(at_stripes) > 0.7


def test_of_a_flat_image_what_has_no_other_part_to_show_changes_nothing() -> None:
    flat = np.full((1, 48, 48), 0.5, np.float32)
    for kind in ("paste", "deformation", "missing"):
        np.testing.assert_allclose(made(kind, flat, 0).image, flat, atol=1e-5)
    for kind in ("blob", "line", "brightness", "texture"):
        assert not np.allclose(made(kind, flat, 0).image, flat, atol=1e-3)


def test_a_deformation_moves_what_is_there_and_brings_no_new_value() -> None:
    normal = image()
    found = made("deformation", normal, 3)
    assert found.image.min() >= normal.min() - 1e-6
    assert found.image.max() <= normal.max() + 1e-6
