"""Synthetic textures, and defects pasted into them with their masks: what tests fit detectors to, and try them on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def textures(count: int, height_px: int, width_px: int, *, channels: int = 3, seed: int = 0) -> Tensor:
    """Normal images: two slanted waves of the same kind with other phases, and a little noise.

    Returns float32 [count, channels, height_px, width_px] in [0, 1].
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height_px, 0:width_px] / 32.0
    images = np.empty((count, channels, height_px, width_px), np.float32)
    for image in images:
        first = np.sin(2 * np.pi * (2.0 * x + 0.7 * y + rng.uniform()))
        second = np.sin(2 * np.pi * (0.4 * x - 1.1 * y + rng.uniform()))
        grey = 0.5 + 0.2 * first + 0.15 * second
        image[:] = grey + 0.02 * rng.standard_normal((channels, height_px, width_px))
    return torch.from_numpy(images.clip(0, 1))


def with_defects(images_BCHW: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Copies of the images, each with a rough square pasted away from its middle, and the masks [B, H, W] (bool)."""
    rng = np.random.default_rng(seed)
    images, (height, width) = images_BCHW.clone(), images_BCHW.shape[-2:]
    masks = torch.zeros(len(images), height, width, dtype=torch.bool)
    side = min(height, width) // 4
    for image, mask in zip(images, masks, strict=True):
        # In the outer thirds, so that a heatmap turned or mirrored is cold there.
        top, left = (int(rng.choice([edge, size - side - edge])) for size, edge in ((height, 2), (width, 3)))
        mask[top : top + side, left : left + side] = True
        rough = rng.random((side, side)) > 0.5
        image[:, mask] = torch.from_numpy(np.where(rough, 0.95, 0.05).astype(np.float32)).flatten()
    return images, masks
