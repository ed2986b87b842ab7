"""The U-Net of SSM, PMAD and the plain auto-encoder: what passes from encoder to decoder is a choice, level by level.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detector import InputSpec
from models.errors import ConfigError
from models.parts.batch_norm import BatchNorm2d

# Four halvings.
STRIDE = 16


def check_size(spec: InputSpec) -> None:
    """Accept sides that every level halves exactly.

    Raises:
        ConfigError: a side is no multiple of 16.
    """
    if spec.height_px % STRIDE or spec.width_px % STRIDE:
        raise ConfigError(
            f"The U-Net halves an image four times, so both sides are multiples of {STRIDE}.",
            f"{spec.height_px}x{spec.width_px}",
            "Choose another --size, such as 128.",
        )


def grid_px(side: int, spec: InputSpec) -> tuple[int, int]:
    """Height and width of a grid that every level halves exactly, of about as many pixels as a square of `side`.

    The input's own where `side` is 0, as `check_size` accepts it.
    """
    if not side:
        check_size(spec)
        return spec.size_px
    rows, columns = (max(1, round(length / STRIDE)) * STRIDE for length in spec.sides(side))
    return rows, columns


class UNet(nn.Module):
    """Five levels of width, 2, 4, 8 and 8 widths; `bridges` say what the decoder sees of the upper four.

    Args:
        width: channels at full resolution; 64 in the papers.
        in_channels: of the images.
        out_channels: of the output.
        bridges: from full resolution to an eighth: None for no connection, `nn.Identity()` for a plain skip, or a
            module that answers for the encoder's map (PMAD's memory).
        mask_blocks: condition the decoder on the mask of visible pixels (SSM).
    """

    def __init__(
        self,
        *,
        width: int,
        out_channels: int,
        bridges: Sequence[nn.Module | None],
        mask_blocks: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 8 * width, 8 * width)
        self.down = nn.ModuleList(
            _down(before, after, stride)
            for before, after, stride in zip((in_channels, *widths), widths, (1, 2, 2, 2, 2), strict=False)
        )
        # From the bottom up.
        self.up = nn.ModuleList(
            _Up(widths[level + 1], widths[level], joined=bridges[level] is not None) for level in (3, 2, 1, 0)
        )
        self.bridges = nn.ModuleList(_Closed() if bridge is None else bridge for bridge in bridges)
        decoded = (widths[4], widths[3], widths[2], widths[1], widths[0])
        self.mask_blocks = nn.ModuleList(_MaskBlock(channels) for channels in decoded) if mask_blocks else None
        self.head = nn.Conv2d(width, out_channels, 3, padding=1)
        # Measured on CPU: a training step on this layout takes two thirds of the time on the default one.
        self.to(memory_format=torch.channels_last)

    def forward(self, images_BCHW: Tensor, visible_B1HW: Tensor | None = None) -> Tensor:
        """The output [B, out_channels, H, W] in (-1, 1); `visible` (1 visible, 0 hidden) goes with mask blocks."""
        x = images_BCHW.contiguous(memory_format=torch.channels_last)
        encoded = []
        for down in self.down:
            x = down(x)
            encoded.append(x)
        if self.mask_blocks is not None:
            x = self.mask_blocks[0](x, visible_B1HW)
        for number, up in enumerate(self.up):
            level = 3 - number
            bridge = self.bridges[level]
            x = up(x, None if isinstance(bridge, _Closed) else bridge(encoded[level]))
            if self.mask_blocks is not None:
                x = self.mask_blocks[number + 1](x, visible_B1HW)
        return torch.tanh(self.head(x))


class _Closed(nn.Module):
    """No connection at this level."""


def _down(before: int, after: int, stride: int) -> nn.Sequential:
    first = nn.Conv2d(before, after, 3 if stride == 1 else 4, stride, padding=1)
    return nn.Sequential(first, *_norm(after), nn.Conv2d(after, after, 3, padding=1), *_norm(after))


def _norm(channels: int) -> tuple[nn.Module, nn.Module]:
    return BatchNorm2d(channels), nn.ReLU()


class _Up(nn.Module):
    def __init__(self, before: int, after: int, *, joined: bool) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(before, after, 1)
        self.convolve = nn.Sequential(
            nn.Conv2d(2 * after if joined else after, after, 3, padding=1),
            *_norm(after),
            nn.Conv2d(after, after, 3, padding=1),
            *_norm(after),
        )

    def forward(self, x: Tensor, bridged: Tensor | None) -> Tensor:
        # A 1x1 convolution and nearest enlargement may change places: narrowing first costs a quarter.
        x = F.interpolate(self.narrow(x), scale_factor=2, mode="nearest")
        if bridged is not None:
            x = torch.cat([x, bridged], 1)
        out: Tensor = self.convolve(x)
        return out


class _MaskBlock(nn.Module):
    """A residual that sees the mask, and acts only where the image is visible."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BatchNorm2d(channels)
        self.convolve = nn.Sequential(
            nn.Conv2d(channels + 1, channels, 3, padding=1),
            *_norm(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor, visible_B1HW: Tensor) -> Tensor:
        visible = F.interpolate(visible_B1HW, x.shape[-2:], mode="nearest")
        residual: Tensor = self.convolve(torch.cat([self.norm(x), visible], 1))
        return x + visible * residual
