"""A backbone cut behind each of its taps, so that something may happen to a map before the next stage sees it.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.backbones.backbone import Backbone
from models.errors import ConfigError


class Shape(NamedTuple):
    """Of a stage's map."""

    channels: int
    height: int
    width: int


class NoChain(ConfigError):
    """A backbone that cannot be cut into stages."""


class Whole(nn.Module):
    """A backbone as it is, of layers that may branch.

    Args:
        backbone: as its taps are.
        size_px: height and width of the images.

    Raises:
        ConfigError: images that it cannot take.
    """

    def __init__(self, backbone: Backbone, size_px: tuple[int, int]) -> None:
        super().__init__()
        self.record = backbone.record()
        self.backbone = backbone
        self.shapes = shapes_of(self, size_px)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """The tapped maps [B, C, H, W] of RGB images in [0, 1], shallow to deep."""
        return list(self.backbone(images_BCHW))


class Stages(nn.Module):
    """The stages of a backbone; run on a prepared image one after the other, they give its tapped maps.

    Batch norm keeps ImageNet's statistics: they stay in eval mode, also where their weights are trained.

    Args:
        backbone: as its taps are; it gives up its layers.
        size_px: height and width of the images.

    Raises:
        ConfigError: a network whose layers do not follow one another, or images too small for a tap.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, size_px: tuple[int, int]) -> None:
        super().__init__()
        self.record = backbone.record()
        self.register_buffer("mean", backbone.mean)
        self.register_buffer("std", backbone.std)
        self.stages = nn.ModuleList(_cut(backbone))
        self.shapes = shapes_of(self, size_px)

    def train(self, mode: bool = True) -> Stages:
        """Stay in eval mode."""
        del mode
        return super().train(False)

    def prepare(self, images_BCHW: Tensor) -> Tensor:
        """RGB images in [0, 1] as the first stage takes them."""
        return ((images_BCHW - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Each stage's map [B, C, H, W] of RGB images in [0, 1], shallow to deep."""
        x = self.prepare(images_BCHW)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def tapped(backbone: Backbone, size_px: tuple[int, int]) -> Stages | Whole:
    """The backbone in stages where its layers follow one another, and else as a whole.

    Raises:
        ConfigError: images of a size that it cannot take.
    """
    try:
        return Stages(backbone, size_px)
    except NoChain:
        return Whole(backbone, size_px)


def shapes_of(network: nn.Module, size_px: tuple[int, int]) -> list[Shape]:
    """Of its maps of images of this size.

    Raises:
        ConfigError: too small a size.
    """
    network.eval()
    try:
        with torch.no_grad():
            return [Shape(*m.shape[1:]) for m in network(torch.zeros(1, 3, *size_px))]
    # A map without pixels.
    except RuntimeError as error:
        raise ConfigError(
            "Every stage needs a position.",
            f"{size_px[0]}x{size_px[1]}",
            "Choose a larger --size, or shallower --set layers=[2,3,4].",
        ) from error


def _cut(backbone: Backbone) -> list[nn.Sequential]:
    """Found by trying: the layers are run in order on noise until one gives the tapped map."""
    if backbone.patch is not None:
        raise _no_chain(backbone)
    noise = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    layers = _flat(backbone.network)
    stages: list[nn.Sequential] = []
    with torch.no_grad():
        x = backbone.prepare(noise)
        for wanted in backbone(noise):
            stage: list[nn.Module] = []
            found = False
            while layers and not found:
                stage.append(layers.pop(0))
                try:
                    x = stage[-1](x)
                # It takes something else than the last one gives.
                except (TypeError, RuntimeError):
                    break
                found = isinstance(x, Tensor) and x.shape == wanted.shape and torch.equal(x, wanted)
            if not found:
                raise _no_chain(backbone)
            stages.append(nn.Sequential(*stage))
    return stages


def _flat(network: nn.Module) -> list[nn.Module]:
    """The layers of a network in order, containers taken apart."""
    layers: list[nn.Module] = []
    for child in network.children():
        layers += _flat(child) if isinstance(child, nn.Sequential) else [child]
    return layers


def _no_chain(backbone: Backbone) -> NoChain:
    return NoChain(
        "A backbone must be a chain of layers to be cut into stages.",
        backbone.name,
        "Choose efficientnet_lite0, a vgg or a resnet; knn and padim take any network.",
    )
