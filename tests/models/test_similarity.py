"""SSIM, gradient similarity and their loss: against scipy and against what they must not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from textures import textures, with_defects

from models.parts.similarity import gms_map, gms_scales, gradient_distance, median, reconstruction_loss, ssim

SIZE = (32, 48)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return textures(2, *SIZE, seed=1), textures(2, *SIZE, seed=2)


def test_the_median_is_the_median():
    x = torch.rand(2, 12, 15)
    expected = np.stack([ndimage.median_filter(one.numpy(), 3, mode="mirror") for one in x])
    np.testing.assert_array_equal(median(x).numpy(), expected)


def test_ssim_equals_its_definition_with_scipys_filter():
    x, y = pair()

    def local(z: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(z, (0, 0, 1.5, 1.5), mode="reflect", radius=(0, 0, 5, 5))

    a, b = x.double().numpy(), y.double().numpy()
    ma, mb = local(a), local(b)
    va, vb, cab = local(a * a) - ma**2, local(b * b) - mb**2, local(a * b) - ma * mb
    expected = (2 * ma * mb + 1e-4) * (2 * cab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    np.testing.assert_allclose(ssim(x.double(), y.double()).numpy(), expected.mean(1), rtol=1e-4, atol=1e-5)


def test_gradient_similarity_equals_its_definition_at_full_size():
    x, y = pair()

    def gradient(z: np.ndarray) -> np.ndarray:
        grey = ndimage.median_filter(z.mean(0), 3, mode="mirror")
        across, down = (ndimage.prewitt(grey, axis, mode="mirror") / 3 for axis in (1, 0))
        return np.sqrt(across**2 + down**2 + np.finfo(np.float64).eps)

    (found, *_) = gms_scales(x.double(), y.double())
    for one, a, b in zip(found, x.double().numpy(), y.double().numpy(), strict=True):
        ga, gb = gradient(a), gradient(b)
        expected = 1 - (2 * ga * gb + 0.0026) / (ga**2 + gb**2 + 0.0026)
        np.testing.assert_allclose(one.numpy(), expected, atol=1e-9)


def test_equal_images_differ_nowhere_and_a_shift_of_brightness_is_invisible_to_gradients_alone():
    x = textures(2, *SIZE) * 0.5
    assert gms_map(x, x).abs().max() < 1e-6
    assert gms_map(x, x + 0.3).abs().max() < 1e-4
    assert ssim(x, x).min() > 1 - 1e-4
    assert ssim(x, x + 0.3).mean() < 0.9
    losses = reconstruction_loss(x, x)
    assert all(abs(float(value)) < 1e-4 for value in losses.values())


def test_scales_halve_and_the_map_is_their_mean_at_the_images_size():
    x, y = pair()
    scales = gms_scales(x, y)
    assert [tuple(s.shape[1:]) for s in scales] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    found = gms_map(x, y)
    assert found.shape == (2, *SIZE)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    expected = sum(float(s.mean()) for s in scales) / 4
    losses = {name: float(value) for name, value in reconstruction_loss(x, y).items()}
    assert losses["gms"] == pytest.approx(expected, rel=1e-5)
    assert losses["mse"] == pytest.approx(float((x - y).square().mean()), rel=1e-5)
    assert losses["loss"] == pytest.approx(losses["mse"] + losses["gms"] + losses["ssim"], rel=1e-5)


def test_the_map_is_hot_where_a_defect_was_put():
    x = textures(3, 64, 64)
    bad, masks = with_defects(x)
    for one, mask in zip(gms_map(x, bad), masks, strict=True):
        assert one[mask].mean() > 5 * one[~mask].mean()


def test_gradients_are_finite_on_flat_images():
    x = torch.full((1, 3, *SIZE), 0.5, requires_grad=True)
    reconstruction_loss(torch.full_like(x, 0.4), x)["loss"].backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_gradient_vectors_that_run_otherwise_are_unlike_though_they_are_as_long():
    x = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    turned = x.transpose(2, 3)
    inner = np.s_[:, 4:-4, 4:-4]
    assert gradient_distance(x, x, 3).abs().max() < 1e-6
    assert gms_scales(x, turned)[0][inner].max() < 1e-4
    # Perpendicular: 1 - c / (|a|^2 + |b|^2 + c); opposite: nearly twice that.
    slope = 2 / 31
    expected = 1 - 0.0026 / (2 * slope**2 + 0.0026)
    np.testing.assert_allclose(gradient_distance(x, turned, 1)[inner], expected, rtol=1e-4)
    opposite = 1 - (0.0026 - 2 * slope**2) / (2 * slope**2 + 0.0026)
    np.testing.assert_allclose(gradient_distance(x, 1 - x, 1)[inner], opposite, rtol=1e-4)
    assert gradient_distance(x * 0.5, x * 0.5 + 0.3, 3).abs().max() < 1e-5
