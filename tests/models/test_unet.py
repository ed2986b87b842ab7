"""The U-Net: its published sizes, what its bridges let through, and where its mask blocks act."""

from __future__ import annotations

import pytest
import torch
from textures import textures
from torch import nn

from models.detector import InputSpec
from models.errors import ConfigError
from models.parts.unet import UNet, check_size


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def skips(*levels: int) -> list[nn.Module | None]:
    return [nn.Identity() if level in levels else None for level in range(4)]


@pytest.mark.parametrize(
    ("width", "channels", "levels", "mask_blocks", "parameters"),
    [
        (64, 4, (0, 1, 2, 3), True, 33_301_188),  # SSM as published
        (64, 3, (1, 2, 3), False, 22_256_195),  # PMAD without its memories
        (16, 4, (0, 1, 2, 3), True, 2_089_140),
    ],
)
def test_parameters(width: int, channels: int, levels: tuple[int, ...], mask_blocks: bool, parameters: int):
    network = UNet(width=width, out_channels=channels, bridges=skips(*levels), mask_blocks=mask_blocks)
    assert count(network) == parameters


def test_output_has_the_images_size_and_lies_within_one():
    network = UNet(width=4, out_channels=4, bridges=skips(0, 1, 2, 3), mask_blocks=True)
    out = network(10 * torch.randn(2, 3, 32, 48), torch.ones(2, 1, 32, 48))
    assert out.shape == (2, 4, 32, 48)
    assert out.abs().max() <= 1


def test_a_closed_level_lets_nothing_through():
    """A change in one corner reaches the far one through the open levels alone."""
    torch.manual_seed(0)
    for levels in ((), (0,), (3,)):
        network = UNet(width=4, out_channels=3, bridges=skips(*levels)).eval()
        seen: list[int] = []
        for level, bridge in enumerate(network.bridges):
            bridge.register_forward_hook(lambda *_, level=level, seen=seen: seen.append(level))
        network(textures(1, 32, 32))
        assert seen == sorted(levels, reverse=True)


def test_mask_blocks_act_where_the_image_is_visible_and_there_alone():
    torch.manual_seed(0)
    network = UNet(width=4, out_channels=3, bridges=skips(0, 1, 2, 3), mask_blocks=True).eval()
    assert network.mask_blocks is not None
    x = torch.randn(1, 4, 32, 32)
    visible = torch.zeros(1, 1, 32, 32)
    visible[..., :16] = 1
    changed = network.mask_blocks[-1](x, visible) != x
    assert not bool(changed[..., 16:].any())
    assert bool(changed[..., :16].any())


@pytest.mark.parametrize("size", [(40, 64), (64, 100), (8, 16)])
def test_sizes_that_do_not_halve_four_times_are_refused(size: tuple[int, int]):
    spec = InputSpec(channels=3, height_px=size[0], width_px=size[1])
    with pytest.raises(ConfigError, match=rf"multiples of 16\. Got: {size[0]}x{size[1]}\. Choose another --size"):
        check_size(spec)
