"""Synthetic defects in normal images, to choose by: what finds them in held-out normals may find real ones.

No defect is like another and none is like a real one; a choice among few candidates is all they are good for.
Drawn by a generator of the image's own, so that every batch and any number of workers draws the same.

Shape suffixes: C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Half of a defect's length, as a share of the image's shorter side.
RADII = (0.06, 0.16)


def with_defects(image_CHW: Tensor, seed: int) -> Tensor:
    """The image with one defect of every kind in turn, [K, C, H, W] in [0, 1], in the order of KINDS."""
    generator = torch.Generator().manual_seed(seed)
    found = [make(image_CHW.cpu(), generator).clamp(0.0, 1.0) for make in KINDS.values()]
    return torch.stack(found).to(image_CHW.device)


def paste(image_CHW: Tensor, generator: torch.Generator) -> Tensor:
    """An ellipse of another place of the image, turned upside down."""
    _, height, width = image_CHW.shape
    shift = [int(_between(0.2, 0.8, generator) * side) for side in (height, width)]
    other = image_CHW.flip(1).roll(shift, (1, 2))
    return _blend(image_CHW, other, _ellipse(image_CHW, generator))


def blob(image_CHW: Tensor, generator: torch.Generator) -> Tensor:
    """A soft spot that is brighter or darker."""
    step = _between(0.15, 0.4, generator) * _sign(generator)
    return image_CHW + step * _ellipse(image_CHW, generator)


def line(image_CHW: Tensor, generator: torch.Generator) -> Tensor:
    """A thin dark or bright stroke."""
    step = _between(0.15, 0.4, generator) * _sign(generator)
    return image_CHW + step * _ellipse(image_CHW, generator, flatness=0.12, longer=2.0)


def texture(image_CHW: Tensor, generator: torch.Generator) -> Tensor:
    """An ellipse of coarse noise."""
    _, height, width = image_CHW.shape
    coarse = torch.randn(1, 1, max(2, height // 4), max(2, width // 4), generator=generator)
    noise = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0]
    return image_CHW + _between(0.1, 0.2, generator) * noise * _ellipse(image_CHW, generator)


def smooth(image_CHW: Tensor, generator: torch.Generator) -> Tensor:
    """An ellipse whose structure is gone."""
    _, height, width = image_CHW.shape
    small = F.adaptive_avg_pool2d(image_CHW, (max(2, height // 12), max(2, width // 12))).unsqueeze(0)
    flat = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)[0]
    return _blend(image_CHW, flat, _ellipse(image_CHW, generator))


KINDS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "paste": paste,
    "blob": blob,
    "line": line,
    "texture": texture,
    "smooth": smooth,
}


def _blend(image_CHW: Tensor, other_CHW: Tensor, mask_HW: Tensor) -> Tensor:
    return image_CHW + (other_CHW - image_CHW) * mask_HW


def _ellipse(image_CHW: Tensor, generator: torch.Generator, *, flatness: float = 0.6, longer: float = 1.0) -> Tensor:
    """A mask [H, W] in [0, 1] with soft edges, somewhere in the middle four fifths of the image."""
    _, height, width = image_CHW.shape
    radius = longer * _between(*RADII, generator) * min(height, width)
    centre = [side * _between(0.1, 0.9, generator) for side in (height, width)]
    angle = _between(0.0, math.pi, generator)
    y, x = torch.meshgrid(torch.arange(height) - centre[0], torch.arange(width) - centre[1], indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    # At least a pixel thick.
    distance = ((along / radius) ** 2 + (across / max(flatness * radius, 1.0)) ** 2).sqrt()
    return ((1.15 - distance) / 0.3).clamp(0.0, 1.0)


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _sign(generator: torch.Generator) -> int:
    return 1 if float(torch.rand((), generator=generator)) < 0.5 else -1
