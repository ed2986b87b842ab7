"""Spatial transformers with bounded transforms: where to look, the warp, and its exact inverse.

Transforms are 3x3 matrices that map output to input coordinates (the convention of `affine_grid`, -1 to 1 over the
image, align_corners=False everywhere).

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts.batch_norm import BatchNorm2d


class SpatialTransformer(nn.Module):
    """A small network that reads a map and predicts how to transform it; the identity when new.

    Three convolutions with batch norm, ReLU and pooling, and two linear layers.
    What it predicts is bounded by tanh, and so what is bounded by 0 is not predicted: a free transform can lower an
    alignment loss by shrinking the object instead of aligning it.

    Args:
        channels: of the maps.
        size_px: height and width at which it reads them.
        hidden: units of the linear layer between.
        max_angle_deg: the largest rotation either way, of one pass.
        max_shift: the largest shift, as a share of either side, of one pass.
        max_scale: the largest change of either axis' scale, of one pass.
        passes: each looks at what those before it made of the map, and corrects it.
    """

    WIDTH = 32

    def __init__(
        self,
        channels: int,
        size_px: tuple[int, int],
        *,
        hidden: int,
        max_angle_deg: float,
        max_shift: float = 0.0,
        max_scale: float = 0.0,
        passes: int = 1,
    ) -> None:
        super().__init__()
        self.size_px = size_px
        self.passes = passes
        # Coordinates run from -1 to 1, so a side is 2.
        self.limits = (math.radians(max_angle_deg), 2 * max_shift, max_scale)
        # Halved three times, rounded up.
        height, width = (math.ceil(side / 8) for side in size_px)
        self.localise = nn.Sequential(
            *_block(channels, self.WIDTH),
            *_block(self.WIDTH, self.WIDTH),
            *_block(self.WIDTH, self.WIDTH),
            nn.Flatten(),
            nn.Linear(self.WIDTH * height * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1 + 2 * (max_shift > 0) + 2 * (max_scale > 0)),
        )
        last = self.localise[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """The transform of each map, [B, 3, 3]; the map is first pooled to the size this network reads."""
        height, width = maps_BCHW.shape[-2:]
        if maps_BCHW.shape[-2:] != self.size_px:
            maps_BCHW = F.adaptive_avg_pool2d(maps_BCHW, self.size_px)
        transform_B33 = self._predict(maps_BCHW, height / width)
        for _ in range(self.passes - 1):
            transform_B33 = transform_B33 @ self._predict(warp(maps_BCHW, transform_B33), height / width)
        return transform_B33

    def _predict(self, maps_BCHW: Tensor, aspect: float) -> Tensor:
        # Channels last: pooling goes over them at once, which makes a step on CPUs 1.7 times as fast.
        read = self.localise(maps_BCHW.contiguous(memory_format=torch.channels_last))
        predicted = list(torch.tanh(read).unbind(1))
        max_angle, max_shift, max_scale = self.limits
        angle = max_angle * predicted.pop(0)
        one, zero = torch.ones_like(angle), torch.zeros_like(angle)
        shift_x, shift_y = (max_shift * predicted.pop(0) for _ in "xy") if max_shift else (zero, zero)
        scale_x, scale_y = (1 + max_scale * predicted.pop(0) for _ in "xy") if max_scale else (one, one)
        return transforms(angle, shift_x, shift_y, scale_x, scale_y, aspect)


def transforms(
    angle_B: Tensor, shift_x_B: Tensor, shift_y_B: Tensor, scale_x_B: Tensor, scale_y_B: Tensor, aspect: float
) -> Tensor:
    """Transforms [B, 3, 3] that turn by radians, scale, and shift by coordinates; `aspect` is height by width.

    R(angle) diag(scale) in pixels; coordinates run from -1 to 1 over either side, hence the aspect.
    """
    cos, sin = torch.cos(angle_B), torch.sin(angle_B)
    one, zero = torch.ones_like(angle_B), torch.zeros_like(angle_B)
    rows = (
        torch.stack([cos * scale_x_B, -sin * scale_y_B * aspect, shift_x_B], 1),
        torch.stack([sin * scale_x_B / aspect, cos * scale_y_B, shift_y_B], 1),
        torch.stack([zero, zero, one], 1),
    )
    return torch.stack(rows, 1)


def random_movements(
    count: int, generator: torch.Generator, *, max_angle_deg: float, max_shift: float, aspect: float
) -> Tensor:
    """Transforms [count, 3, 3] that turn and shift, by shares of the sides, each within its bounds either way."""
    angle, shift_x, shift_y = (2 * torch.rand(3, count, generator=generator) - 1).unbind(0)
    one = torch.ones_like(angle)
    # A side is 2 long.
    bound = 2 * max_shift
    return transforms(math.radians(max_angle_deg) * angle, bound * shift_x, bound * shift_y, one, one, aspect)


def _block(before: int, after: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return convolution, BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)


def warp(maps_BCHW: Tensor, transform_B33: Tensor, *, padding: str = "reflection") -> Tensor:
    """Each map as its transform shows it, bilinear; what lies outside is reflected, or what `padding` says.

    A transform that is not finite gives a map of NaN.
    """
    if not len(maps_BCHW):
        # affine_grid refuses to make no grid; this is as empty, and a gradient (none) reaches both.
        return maps_BCHW * transform_B33[:, :1, :1].unsqueeze(3)
    # grid_sample's backward pass writes outside its memory where a grid is not finite (seen with torch 2.14).
    broken_B = ~torch.isfinite(transform_B33).flatten(1).all(1)
    identity = torch.eye(3, dtype=transform_B33.dtype, device=transform_B33.device)
    sound_B33 = torch.where(broken_B.view(-1, 1, 1), identity, transform_B33)
    grid = F.affine_grid(sound_B33[:, :2], list(maps_BCHW.shape), align_corners=False)
    warped = F.grid_sample(maps_BCHW, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return warped.masked_fill(broken_B.view(-1, 1, 1, 1), float("nan"))


def shown(transform_B33: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Where the transformed frame shows the image and not what continues it: 1, 0 outside, between along its border.

    Shape [B, 1, H, W] with H and W of `size_px`.
    """
    return warp(transform_B33.new_ones(len(transform_B33), 1, *size_px), transform_B33, padding="zeros")


def unwarp(maps_BHW: Tensor, transform_B33: Tensor) -> Tensor:
    """Maps of the transformed frame back in the frame they were taken from.

    Places that the transformed frame does not show take the value of its nearest border.
    """
    # In float32 also under autocast, whose half precision has no inverse.
    inverse = torch.linalg.inv(transform_B33.to(torch.promote_types(transform_B33.dtype, torch.float32)))
    return warp(maps_BHW.unsqueeze(1), inverse, padding="border").squeeze(1)
