"""Images at another detector's size and channels, as the pixel policy prepares them: by area, grey as luma.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from models.detector import InputSpec

# Rec. 601: what a grey detector sees of a colour picture.
LUMA = (0.299, 0.587, 0.114)


def as_input(images_BCHW: Tensor, spec: InputSpec) -> Tensor:
    """The images as a detector of `spec` takes them, float32 [B, spec.channels, spec.height_px, spec.width_px].

    What it gives of an image is what the image's own decoding at that size gives, where either size divides the
    source's; elsewhere it was averaged twice, and is a little softer.

    Args:
        images_BCHW: float32 in [0, 1], of 1 or 3 channels, commonly of the largest size among detectors.
        spec: the detector's.

    Raises:
        ValueError: another number of channels.
    """
    if images_BCHW.shape[1] not in (1, 3):
        raise ValueError(f"Images have 1 or 3 channels. Got: {images_BCHW.shape[1]}. Decode them by a pixel policy.")
    if images_BCHW.shape[1] > spec.channels:
        weights = torch.tensor(LUMA, dtype=images_BCHW.dtype, device=images_BCHW.device)
        images_BCHW = (images_BCHW * weights[:, None, None]).sum(1, keepdim=True)
    resized = resampled(images_BCHW, spec.size_px)
    return resized.expand(-1, spec.channels, -1, -1).contiguous()


def resampled(images_BCHW: Tensor, size_px: tuple[int, int]) -> Tensor:
    """The images [B, C, *size_px]; values in [0, 1] stay there.

    An axis that shrinks is averaged, each pixel weighed by the part of it that an output pixel covers; one that grows
    is interpolated linearly between pixel centres.
    """
    # Where a graph is traced, sides are tensors.
    height, width = map(int, images_BCHW.shape[-2:])
    if (height, width) == size_px:
        return images_BCHW
    rows, columns = _matrix(height, size_px[0]).to(images_BCHW), _matrix(width, size_px[1]).to(images_BCHW)
    # Sums of weights are 1 but for rounding.
    return (rows @ images_BCHW @ columns.T).clamp(0.0, 1.0)


@lru_cache(maxsize=32)
def _matrix(length: int, wanted: int) -> Tensor:
    """[wanted, length]: what each pixel of a line of `wanted` takes of one of `length`; its rows sum to 1."""
    if wanted <= length:
        edges = np.arange(wanted + 1) * (length / wanted)
        first, last = edges[:-1, None], edges[1:, None]
        pixel = np.arange(length)[None]
        covered = np.minimum(last, pixel + 1) - np.maximum(first, pixel)
        return torch.from_numpy(covered.clip(0.0) * (wanted / length)).float()
    centres = ((np.arange(wanted) + 0.5) * (length / wanted) - 0.5).clip(0, length - 1)
    distance = np.abs(centres[:, None] - np.arange(length)[None])
    return torch.from_numpy((1.0 - distance).clip(0.0)).float()
