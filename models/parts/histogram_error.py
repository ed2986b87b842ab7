"""HEE: take off an error map what its own histogram says is background (Xing and Li, IEEE TCSVT 2023; form re-derived).

Most of an image is normal, so the most frequent error of its map, the histogram's mode, is the error of normal
background, image by image.
The histogram shares each pixel out between its two nearest bins, and the mode lies between bins: all of it is
continuous in the errors, so that no score hangs on the last digit.

Shape suffixes: B batch, H height, W width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 256
# In bins.
SMOOTHING = 5


def mode(errors_BHW: Tensor, top: Tensor | float, mode_cap: Tensor | float) -> Tensor:
    """The most frequent error of each map, [B].

    Args:
        errors_BHW: non-negative error maps.
        top: the histogram's end, the 99.9th percentile of held-out normals: a map's own maximum would hang on one
            pixel.
        mode_cap: the 99th percentile of modes of held-out normals.
            Where a defect fills the image, its error is the most frequent one; without the cap it would delete itself.
    """
    counts = _histogram(errors_BHW, top)
    peak = counts.argmax(1, keepdim=True)
    bins = peak.squeeze(1) + _vertex(counts, peak)
    end, cap = (torch.as_tensor(limit, dtype=errors_BHW.dtype, device=errors_BHW.device) for limit in (top, mode_cap))
    return torch.minimum(bins * (end / (BINS - 1)), cap)


def subtract(errors_BHW: Tensor, mode_B: Tensor) -> Tensor:
    """What of each error lies above the mode, [B, H, W]."""
    return (errors_BHW - mode_B.view(-1, 1, 1)).clamp_min(0)


def _histogram(errors_BHW: Tensor, top: Tensor | float) -> Tensor:
    """Smoothed counts [B, BINS]; errors beyond the end are left out."""
    place = errors_BHW.flatten(1) / top * (BINS - 1)
    inside = (place <= BINS - 1).to(place)
    # Also of NaN.
    place = torch.where(inside > 0, place, torch.zeros_like(place)).clamp_min(0)
    lower = place.floor().clamp_max(BINS - 2)
    share = place - lower
    counts = torch.zeros_like(place[:, :1]).repeat(1, BINS)
    counts = counts.scatter_add(1, lower.long(), (1 - share) * inside)
    counts = counts.scatter_add(1, lower.long() + 1, share * inside)
    return counts @ _smoothing().to(counts)


@lru_cache(maxsize=1)
def _smoothing() -> Tensor:
    """[BINS, BINS] matrix of the mean of SMOOTHING neighbours, as far as there are any: no engine pools in float64."""
    bins = torch.eye(BINS, dtype=torch.float64).unsqueeze(1)
    return F.avg_pool1d(bins, SMOOTHING, 1, SMOOTHING // 2, count_include_pad=False).squeeze(1).T.contiguous()


def _vertex(counts: Tensor, peak: Tensor) -> Tensor:
    """How far the top of the parabola through a peak and its neighbours lies from it, in bins, [B] in [-0.5, 0.5]."""
    left = counts.gather(1, (peak - 1).clamp_min(0))
    here = counts.gather(1, peak)
    right = counts.gather(1, (peak + 1).clamp_max(BINS - 1))
    bend = left - 2 * here + right
    offset = torch.where(bend < 0, 0.5 * (left - right) / bend.clamp_max(-1e-6), torch.zeros_like(bend))
    edge = (peak == 0) | (peak == BINS - 1)
    return torch.where(edge, torch.zeros_like(offset), offset.clamp(-0.5, 0.5)).squeeze(1)
