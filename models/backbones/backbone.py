"""A frozen network and its tapped maps.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones import lite0, timm_network, vgg
from models.backbones.family import Family
from models.backbones.norms import NORMS
from models.backbones.timm_network import VisionTransformer
from models.backbones.weights import load_weights
from models.errors import ConfigError


@dataclass(frozen=True)
class Tap:
    """One tapped map: `halvings` h means stride 2**h, of a vision transformer that it is block h's."""

    halvings: int
    channels: int


class Backbone(nn.Module):
    """A frozen ImageNet network that returns its tapped maps, in eval mode for ever.

    Args:
        name: vgg11..vgg19 (optionally `_bn`), efficientnet_lite0, or any timm network with `features_only`.
        halvings: the taps, as halvings of the input: (2, 3, 4, 5) taps strides 4, 8, 16 and 32; of a vision transformer
            its blocks, counted from 1.
        weights: a word or file of models/backbones/weights.py; None leaves them to a state dict that is loaded later.
        norm: a key of NORMS, or `native` for the convention of the weights.

    Raises:
        ConfigError: an unknown network, tap or norm.
        WeightsError: weights that are missing or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, halvings: Sequence[int], weights: str | None = "auto", norm: str = "native") -> None:
        super().__init__()
        if not halvings or list(halvings) != sorted(set(halvings)):
            raise ConfigError(
                "Taps are ascending halvings of the input, or blocks of a vision transformer.",
                list(halvings),
                "Choose others with --set layers=[2,3,4,5].",
            )
        family = family_of(name)
        self.name = name
        self.weights = weights
        self.norm = family.norm(name) if norm == "native" else norm
        if self.norm not in NORMS:
            raise ConfigError(
                f"norm must be one of native, {', '.join(NORMS)}.", norm, "Set it with --set norm=native."
            )
        self.halvings = tuple(halvings)
        # Whether tapped maps hold negative values.
        self.signed = family.signed(name)
        self.network = family.build(name, self.halvings)
        # Pixels a side of what a vision transformer sees as one; None of a convolutional network.
        self.patch = self.network.patch if isinstance(self.network, VisionTransformer) else None
        self.sha256, self.licence = "", ""
        if weights is not None:
            self.sha256, self.licence = load_weights(self.network, name, family, weights)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMS[self.norm])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)

    def record(self) -> dict[str, Any]:
        """What a model's record says of its source network."""
        return {
            "name": self.name,
            "weights": self.weights,
            "sha256": self.sha256,
            "licence": self.licence,
            "norm": self.norm,
            "halvings": list(self.halvings),
        }

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode: batch statistics of a frozen network must not move."""
        del mode
        return super().train(False)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """The tapped maps of RGB (or grey) images in [0, 1], shallow to deep."""
        return tuple(self.network(self.prepare(images_BCHW)))

    def prepare(self, images_BCHW: Tensor) -> Tensor:
        """RGB (or grey) images in [0, 1] as the network takes them."""
        if images_BCHW.shape[1] == 1:
            images_BCHW = images_BCHW.expand(-1, 3, -1, -1)
        return ((images_BCHW - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def taps(self) -> tuple[Tap, ...]:
        """Channels of each tap, read from a dry run."""
        side = 64 if self.patch is None else 4 * self.patch
        with torch.no_grad():
            maps = self(torch.zeros(1, 3, side, side))
        return tuple(Tap(h, m.shape[1]) for h, m in zip(self.halvings, maps, strict=True))


def family_of(name: str) -> Family:
    """What is particular to the family that a network is of."""
    if name in vgg.VGG:
        return vgg.FAMILY
    return lite0.FAMILY if name == lite0.LITE0 else timm_network.FAMILY
