"""Spatial transformers: the identity when new, within their bounds, and undone exactly."""

from __future__ import annotations

import math

import pytest
import torch
from textures import textures

from models.parts.stn import SpatialTransformer, unwarp, warp

SHIFT, SCALE = {"max_shift": 0.2}, {"max_scale": 0.1}
BOUNDS = ({}, SHIFT, SCALE, {**SHIFT, **SCALE})


def transformer(bounds: dict[str, float], size: tuple[int, int] = (16, 24)) -> SpatialTransformer:
    torch.manual_seed(0)
    return SpatialTransformer(3, size, hidden=8, max_angle_deg=15.0, **bounds).eval()


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_new_one_is_the_identity(bounds: dict[str, float]):
    images = textures(2, 32, 48)
    transform = transformer(bounds)(images)
    torch.testing.assert_close(transform, torch.eye(3).expand(2, 3, 3))
    torch.testing.assert_close(warp(images, transform), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_transforms_stay_within_their_bounds_whatever_the_network_says(bounds: dict[str, float]):
    stn = transformer(bounds)
    aspect = 16 / 24
    for value in (1e6, -1e6):
        with torch.no_grad():
            stn.localise[-1].bias.fill_(value)
        ((a, b, shift_x), (c, d, shift_y), _) = stn(textures(1, 32, 48))[0].detach().tolist()
        # In pixels: undo the aspect.
        b, c = b / aspect, c * aspect
        scale_x, scale_y = math.hypot(a, c), math.hypot(b, d)
        assert math.degrees(math.atan2(c, a)) == pytest.approx(math.copysign(15, value), abs=1e-3)
        assert a * b + c * d == pytest.approx(0, abs=1e-6), "axes stay at right angles"
        expected = 1 + math.copysign(bounds.get("max_scale", 0.0), value)
        assert (scale_x, scale_y) == pytest.approx((expected, expected), abs=1e-5)
        # A share of a side, which is 2 long.
        shift = 2 * math.copysign(bounds.get("max_shift", 0.0), value)
        assert (shift_x, shift_y) == pytest.approx((shift, shift), abs=1e-6)


def test_a_rotation_turns_pixels_by_its_angle_also_where_the_image_is_not_square():
    stn = SpatialTransformer(3, (32, 64), hidden=4, max_angle_deg=90.0).eval()
    with torch.no_grad():
        stn.localise[-1].bias.fill_(1e6)
    image = torch.zeros(1, 1, 32, 64)
    image[0, 0, 16, 36:44] = 1  # a bar to the right of the centre
    turned = warp(image, stn(textures(1, 32, 64)), padding="zeros")
    row, column = divmod(int(turned.flatten().argmax()), 64)
    assert abs(column - 32) <= 1
    assert abs(row - 16) in range(3, 13)


def test_what_is_warped_is_unwarped():
    maps = torch.nn.functional.avg_pool2d(textures(3, 64, 64), 5, 1, 2)[:, 0]
    stn = transformer(SCALE, (64, 64))
    with torch.no_grad():
        stn.localise[-1].bias.copy_(torch.tensor([0.4, 0.5, -0.3]))
    transform = stn(textures(3, 64, 64)).detach()
    back = unwarp(warp(maps.unsqueeze(1), transform).squeeze(1), transform)
    inside = (slice(None), slice(14, 50), slice(14, 50))
    torch.testing.assert_close(back[inside], maps[inside], atol=0.03, rtol=0)
    assert float((warp(maps.unsqueeze(1), transform).squeeze(1)[inside] - maps[inside]).abs().max()) > 0.1


def test_frames_that_follow_one_another_are_one_product():
    maps = torch.nn.functional.avg_pool2d(textures(1, 64, 64), 7, 1, 3)
    angle = math.radians(10)
    one = torch.tensor(
        [[[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0.05], [0, 0, 1.0]]]
    )
    other = torch.tensor([[[1.05, 0, 0.02], [0, 0.95, 0], [0, 0, 1.0]]])
    inside = (slice(None), slice(None), slice(12, 52), slice(12, 52))
    torch.testing.assert_close(warp(warp(maps, one), other)[inside], warp(maps, one @ other)[inside], atol=0.03, rtol=0)


def test_a_transform_that_is_not_finite_gives_nan_and_its_gradient_does_not_crash():
    transform = torch.eye(3).repeat(2, 1, 1)
    transform[1, 0, 0] = float("nan")
    transform.requires_grad_()
    found = warp(textures(2, 32, 32), transform)
    assert bool(torch.isfinite(found[0]).all())
    assert bool(torch.isnan(found[1]).all())
    found[0].sum().backward()


def test_maps_come_back_also_under_reduced_precision():
    """Under autocast transforms are halves, of which torch has no inverse."""
    maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    identity = torch.eye(3, dtype=torch.float16).expand(2, 3, 3)
    torch.testing.assert_close(unwarp(maps, identity), maps)
