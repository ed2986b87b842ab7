"""VGG (Simonyan and Zisserman, 2015) as torchvision builds it; a tap is a pool's output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.backbones.family import Family

VGG = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")


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
    import torchvision.models

    # Built without memory first: nine tenths of a VGG's weights are a classifier that nobody needs here.
    with torch.device("meta"):
        layers = getattr(torchvision.models, name)(weights=None).features
    features = VGGFeatures(list(layers), halvings)
    features.to_empty(device="cpu")
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            # torchvision's own initialisation.
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        elif isinstance(layer, nn.ReLU):
            # An in-place ReLU breaks gradients taken with respect to the input.
            layer.inplace = False
    return features


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("features."): value for key, value in state.items()}


# MKD and its successors feed torchvision's weights RGB in [0, 1], as published.
FAMILY = Family(build=_build, norm="none", weights="torchvision", signed=lambda _: False, rename=_rename)
