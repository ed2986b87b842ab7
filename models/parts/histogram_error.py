"""HEE: take off an error map what its own histogram says is background (Xing and Li, IEEE TCSVT 2023; form re-derived).

Most of an image is normal, so the most frequent error of its map is the error of normal background: the histogram's mode
and its half-width at half height describe it, image by image. The histogram shares each pixel out between its two nearest
bins, and mode and width lie between bins: all of it is continuous in the errors, so that no score hangs on the last digit.

Shape suffixes: B batch, H height, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 256
SMOOTHING = 5  # bins


class Background(NamedTuple):
    """The background of each map: `mode` [B] its most frequent error, `width` [B] from there to half the count."""

    mode: Tensor
    width: Tensor


def background(errors_BHW: Tensor, top: Tensor | float, mode_cap: Tensor | float) -> Background:
    """Mode and right half-width of each map's histogram over [0, top].

    Args:
        errors_BHW: non-negative error maps.
        top: the histogram's end, the 99.9th percentile of held-out normals: a map's own maximum would hang on one pixel.
        mode_cap: the 99th percentile of modes of held-out normals. Where a defect fills the image, its error is the most
            frequent one; without the cap it would delete itself.
    """
    counts = _histogram(errors_BHW, top)
    peak = counts.argmax(1, keepdim=True)
    mode_bins = peak.squeeze(1) + _vertex(counts, peak)
    width_bins = (_half_height(counts, peak) - mode_bins).clamp_min(1.0)
    end, cap = (torch.as_tensor(limit, dtype=errors_BHW.dtype, device=errors_BHW.device) for limit in (top, mode_cap))
    bin_width = end / (BINS - 1)
    return Background(torch.minimum(mode_bins * bin_width, cap), width_bins * bin_width)


def subtract(errors_BHW: Tensor, found: Background, kappa: float) -> Tensor:
    """What of each error lies above mode + kappa widths, [B, H, W]."""
    level = found.mode + kappa * found.width
    return (errors_BHW - level.view(-1, 1, 1)).clamp_min(0)


def _histogram(errors_BHW: Tensor, top: Tensor | float) -> Tensor:
    """Smoothed counts [B, BINS]; errors beyond the end are left out."""
    place = errors_BHW.flatten(1) / top * (BINS - 1)
    inside = (place <= BINS - 1).to(place)
    place = torch.where(inside > 0, place, torch.zeros_like(place)).clamp_min(0)  # also of NaN
    lower = place.floor().clamp_max(BINS - 2)
    share = place - lower
    counts = torch.zeros(len(place), BINS, dtype=place.dtype, device=place.device)
    counts.scatter_add_(1, lower.long(), (1 - share) * inside)
    counts.scatter_add_(1, lower.long() + 1, share * inside)
    return F.avg_pool1d(counts.unsqueeze(1), SMOOTHING, 1, SMOOTHING // 2, count_include_pad=False).squeeze(1)


def _vertex(counts: Tensor, peak: Tensor) -> Tensor:
    """How far the top of the parabola through a peak and its neighbours lies from it, in bins, [B] in [-0.5, 0.5]."""
    left = counts.gather(1, (peak - 1).clamp_min(0))
    here = counts.gather(1, peak)
    right = counts.gather(1, (peak + 1).clamp_max(BINS - 1))
    bend = left - 2 * here + right
    offset = torch.where(bend < 0, 0.5 * (left - right) / bend.clamp_max(-1e-6), torch.zeros_like(bend))
    edge = (peak == 0) | (peak == BINS - 1)
    return torch.where(edge, torch.zeros_like(offset), offset.clamp(-0.5, 0.5)).squeeze(1)


def _half_height(counts: Tensor, peak: Tensor) -> Tensor:
    """Where, right of the peak, the count first falls to half of it, in bins, [B]; the end where it never does."""
    half = counts.gather(1, peak) / 2
    bins = torch.arange(BINS, device=counts.device)
    fallen = (counts <= half) & (bins > peak)
    never = ~fallen.any(1)
    first = fallen.float().argmax(1, keepdim=True).clamp_min(1)
    before, after = counts.gather(1, first - 1), counts.gather(1, first)
    share = ((before - half) / (before - after).clamp_min(1e-6)).clamp(0, 1)
    place = (first - 1 + share).squeeze(1)
    return torch.where(never, torch.full_like(place, BINS - 1), place)
