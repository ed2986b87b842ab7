"""Blur and opening against scipy, and the opening against its definition, threshold by threshold."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from models.parts.maps import cross_opening, gaussian_blur, resampled

# Weights of the blur are float32: two units in the last place over some tens of terms.
ROUND_OFF = 2e-6
CROSS = ndimage.generate_binary_structure(2, 1)


def maps(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth maps with noise on them, so that an opening takes something away and leaves something."""
    rng = np.random.default_rng(seed)
    noise = rng.random((count, height, width))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 1.5, 1.5)) + 0.1 * noise).float()


@pytest.mark.parametrize("sigma_px", [0.5, 1.0, 2.0, 4.0, 7.3])
@pytest.mark.parametrize("size", [(64, 64), (33, 50), (9, 40)])
def test_blur_equals_scipy(sigma_px: float, size: tuple[int, int]):
    """Also where the kernel is wider than the image and reflects more than once."""
    values = maps(2, *size)
    blurred = gaussian_blur(values, sigma_px).numpy()
    for one, expected in zip(blurred, values.double().numpy(), strict=True):
        np.testing.assert_allclose(one, ndimage.gaussian_filter(expected, sigma_px), rtol=0, atol=ROUND_OFF)


def test_blur_keeps_a_constant_and_the_mean():
    values = maps(1, 40, 24)
    assert gaussian_blur(values, 3.0).mean().item() == pytest.approx(values.mean().item(), rel=1e-5)
    torch.testing.assert_close(gaussian_blur(torch.full((1, 40, 24), 0.7), 3.0), torch.full((1, 40, 24), 0.7))


@pytest.mark.parametrize("sigma_px", [0.0, -1.0])
def test_no_sigma_changes_nothing(sigma_px: float):
    values = maps(1, 8, 9)
    assert torch.equal(gaussian_blur(values, sigma_px), values)


def test_blur_of_one_map_does_not_see_the_others():
    values = maps(3, 20, 30)
    torch.testing.assert_close(gaussian_blur(values, 2.0)[1:2], gaussian_blur(values[1:2], 2.0), rtol=0, atol=1e-7)


def test_the_blurs_matrix_is_not_changed_by_its_users():
    """It is kept between calls: a result must not be a view of it."""
    first = gaussian_blur(torch.eye(12)[None], 1.0)
    first.zero_()
    assert gaussian_blur(torch.eye(12)[None], 1.0).sum() > 0


def binary_opening(mask: np.ndarray) -> np.ndarray:
    """Opening with the cross where pixels outside the image are ignored: as OpenCV defines its border."""
    eroded = ndimage.binary_erosion(mask, CROSS, border_value=1)
    return ndimage.binary_dilation(eroded, CROSS, border_value=0)


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (1, 12), (2, 2)])
def test_thresholding_an_opening_equals_opening_each_thresholded_map(size: tuple[int, int]):
    values = maps(1, *size)
    opened = cross_opening(values)[0].numpy()
    for threshold in np.quantile(values.numpy(), np.linspace(0, 1, 120)):
        np.testing.assert_array_equal(opened > threshold, binary_opening(values[0].numpy() > threshold))


def test_a_border_taken_as_background_would_give_another_opening():
    """What scipy's default border does; that the rule above is not vacuous."""
    mask = maps(1, 32, 32)[0].numpy() > 0.5
    assert (binary_opening(mask) != ndimage.binary_opening(mask, CROSS)).any()


def test_opening_equals_scipys_grey_opening():
    values = maps(3, 25, 31)
    for one, value in zip(cross_opening(values).numpy(), values.numpy(), strict=True):
        np.testing.assert_array_equal(one, ndimage.grey_opening(value, footprint=CROSS, mode="reflect"))


def test_opening_removes_single_hot_pixels_keeps_crosses_and_is_idempotent():
    values = torch.zeros(1, 12, 12)
    values[0, 2, 2] = 1.0
    values[0, 6:9, 7] = values[0, 7, 6:9] = 0.5
    opened = cross_opening(values)
    assert opened[0, 2, 2] == 0
    assert torch.equal(opened[0, 5:], values[0, 5:])
    assert torch.equal(cross_opening(opened), opened)
    assert values[0, 2, 2] == 1.0  # the input is as before


@pytest.mark.parametrize(("mode", "like"), [("area", "area"), ("linear", "bilinear")])
@pytest.mark.parametrize("size", [(8, 5), (16, 31)])
def test_a_product_with_matrices_resamples_as_torch_does(
    mode: Literal["area", "linear"], like: str, size: tuple[int, int]
) -> None:
    given = torch.rand(2, 3, 16, 12, dtype=torch.float64)
    corners = {"align_corners": False} if like == "bilinear" else {}
    torch.testing.assert_close(resampled(given, size, mode), F.interpolate(given, size, mode=like, **corners))
