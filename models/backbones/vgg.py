"""VGG (Simonyan and Zisserman, 2015), its layers numbered as torchvision's; a tap is a pool's output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.backbones.family import Family, check_halvings

# Convolutions before each of the five pools.
CONVOLUTIONS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)
VGG = (*CONVOLUTIONS, *(f"{name}_bn" for name in CONVOLUTIONS))


class VGGFeatures(nn.Sequential):
    """torchvision's `features`: the outputs of the pools that `halvings` name, shallow to deep."""

    def __init__(self, layers: Sequence[nn.Module], halvings: Sequence[int]) -> None:
        super().__init__(*layers)
        self.halvings = tuple(halvings)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        pools = 0
        for layer in self:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pools += 1
                if pools in self.halvings:
                    maps.append(x)
                if pools == self.halvings[-1]:
                    break
        return maps


def _build(name: str, halvings: Sequence[int]) -> nn.Module:
    check_halvings(halvings)
    # Without memory first, and without a draw of weights that are drawn below.
    with torch.device("meta"):
        layers = _layers(CONVOLUTIONS[name.removesuffix("_bn")], norm=name.endswith("_bn"))
    features = VGGFeatures(layers, halvings)
    features.to_empty(device="cpu")
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            # torchvision's own initialisation.
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    return features


def _layers(convolutions: Sequence[int], *, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    before = 3
    for count, channels in zip(convolutions, CHANNELS, strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(before, channels, 3, padding=1))
            if norm:
                layers.append(nn.BatchNorm2d(channels))
            # One in place, as torchvision has it, breaks gradients taken with respect to the input.
            layers.append(nn.ReLU())
            before = channels
        layers.append(nn.MaxPool2d(2))
    return layers


def _rename(state: dict[str, Tensor], _: Sequence[str]) -> dict[str, Tensor]:
    return {key.removeprefix("features."): value for key, value in state.items()}


# MKD and its successors feed torchvision's weights RGB in [0, 1], as published.
FAMILY = Family(
    build=_build,
    norm=lambda _: "none",
    weights=lambda _: "torchvision",
    signed=lambda _: False,
    licence=lambda _: "BSD-3-Clause",
    packages={},
    rename=_rename,
)
