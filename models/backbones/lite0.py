"""EfficientNet-Lite0 (Tan and Le, ICML 2019, without squeeze-and-excitation and with ReLU6), and where its weights are.

The layers, their names and their initial weights are those of timm's `tf_efficientnet_lite0`, down to the bit.
It is written out here because every process that scores builds it: timm imports all of its networks, and torchvision,
for the sake of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.family import Family, check_halvings
from models.backbones.lites import package_file, renamed

LITE0 = "efficientnet_lite0"
# The weights come from TensorFlow: its "same" padding and batch-norm epsilon are the tf_ variant's.
TIMM_NAME = f"tf_{LITE0}"
STEM = 32
# Of each stage: blocks, kernel, stride of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The last stage at so many halvings of the input.
LAST_STAGE = {1: 0, 2: 1, 3: 2, 4: 4, 5: 6}
# What follows them in the full network, as timm names it.
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_HEAD = ("conv_head.weight", *(f"bn2.{name}" for name in _NORM), "classifier.weight", "classifier.bias")


class Lite0(nn.Module):
    """The untrained network; its forward gives the maps at these halvings of the input, shallow to deep."""

    def __init__(self, halvings: Sequence[int]) -> None:
        super().__init__()
        self._tapped = frozenset(LAST_STAGE[halving] for halving in halvings)
        self.conv_stem = _conv(3, STEM, kernel=3, stride=2)
        self.bn1 = _Norm(STEM)
        for _ in range(2):
            # timm draws the weights of a layer that it throws away: with these, a seed gives the same network.
            nn.Conv2d(8, 8, 1)
        stages, channels = [], STEM
        for count, kernel, stride, expansion, out in STAGES:
            blocks: list[nn.Module] = []
            for number in range(count):
                first = stride if number == 0 else 1
                if expansion == 1:
                    blocks.append(_Separable(channels, out, kernel))
                else:
                    blocks.append(_Inverted(channels, out, kernel, first, expansion))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                # Of the inputs' gradient: TensorFlow's own initial weights.
                fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
                nn.init.normal_(part.weight, 0, math.sqrt(2.0 / fan_out))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.bn1(self.conv_stem(x))
        maps = []
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in self._tapped:
                maps.append(x)
        return maps


class _Separable(nn.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _conv(channels, channels, kernel, groups=channels)
        self.bn1 = _Norm(channels)
        self.conv_pw = _conv(channels, out)
        self.bn2 = _Norm(out, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.bn2(self.conv_pw(self.bn1(self.conv_dw(x)))))


class _Inverted(nn.Module):
    """An inverted residual: expanded, convolved depthwise, projected, and added to the input where shapes allow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels
        self._residual = stride == 1 and channels == out
        self.conv_pw = _conv(channels, inner)
        self.bn1 = _Norm(inner)
        self.conv_dw = _conv(inner, inner, kernel, stride, groups=inner)
        self.bn2 = _Norm(inner)
        self.conv_pwl = _conv(inner, out)
        self.bn3 = _Norm(out, act=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))
        projected = cast(Tensor, self.bn3(self.conv_pwl(inner)))
        return projected + x if self._residual else projected


class _Norm(nn.BatchNorm2d):
    """Batch norm, and ReLU6 unless it ends a block."""

    def __init__(self, channels: int, *, act: bool = True) -> None:
        super().__init__(channels, eps=1e-3)
        self._act = act

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.relu6(x, inplace=True) if self._act else x


class _SameConv(nn.Conv2d):
    """A strided convolution under TensorFlow's "same" padding: what is odd of it is added below and on the right."""

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (
            self._padding(size, kernel, stride)
            for size, kernel, stride in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        return super().forward(F.pad(x, (left, right, top, bottom)))

    @staticmethod
    def _padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
        whole = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return whole // 2, whole - whole // 2


def _conv(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return _SameConv(channels, out, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=False)


def _build(_: str, halvings: Sequence[int]) -> nn.Module:
    check_halvings(halvings)
    return Lite0(halvings)


def _rename(state: dict[str, Tensor], _: Sequence[str]) -> dict[str, Tensor]:
    # Of the network with all of its stages. Names alone, no memory.
    with torch.device("meta"):
        return renamed(state, [*Lite0(tuple(LAST_STAGE)).state_dict(), *_HEAD])


# EfficientNet's blocks end without an activation.
FAMILY = Family(
    build=_build,
    norm=lambda _: "lite",
    weights=lambda _: "package",
    signed=lambda _: True,
    licence=lambda _: "Apache-2.0",
    packages={LITE0: partial(package_file, 0)},
    rename=_rename,
)
