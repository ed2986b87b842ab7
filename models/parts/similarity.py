"""How far a reconstruction lies from its image: SSIM, multi-scale gradient magnitude similarity, and their loss.

Everything here takes images in [0, 1]: the constants assume that range. Borders are reflected, so that maps have the
size of their images.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.parts.maps import enlarged, gaussian_blur, resampled

# An 11x11 window.
SSIM_SIGMA_PX, SSIM_RADIUS_PX = 1.5, 5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
GMS_C = 0.0026
SCALES = 4
# Within the root: a flat area has a gradient too.
EPSILON = torch.finfo(torch.float64).eps


def ssim(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Structural similarity at each pixel, mean over channels, [B, H, W] in [-1, 1] (Wang et al., 2004)."""

    def local(z: Tensor) -> Tensor:
        return gaussian_blur(z, SSIM_SIGMA_PX, radius_px=SSIM_RADIUS_PX)

    mean_x, mean_y = local(x_BCHW), local(y_BCHW)
    variance_x = local(x_BCHW.square()) - mean_x.square()
    variance_y = local(y_BCHW.square()) - mean_y.square()
    covariance = local(x_BCHW * y_BCHW) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return (luminance * structure).mean(1)


def gms_scales(x_BCHW: Tensor, y_BCHW: Tensor) -> list[Tensor]:
    """1 - gradient magnitude similarity at each pixel of each scale, [B, h, w] in [0, 1]; scales halve in size.

    A uniform change of brightness is invisible to it: it compares edges alone (Xue et al., 2014).
    """
    found = []
    for scale in range(SCALES):
        if scale:
            x_BCHW, y_BCHW = F.avg_pool2d(x_BCHW, 2), F.avg_pool2d(y_BCHW, 2)
        edges_x, edges_y = _gradient(x_BCHW), _gradient(y_BCHW)
        found.append(1 - (2 * edges_x * edges_y + GMS_C) / (edges_x.square() + edges_y.square() + GMS_C))
    return found


def gms_map(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """1 - GMS, the mean of all scales raised to the images' size by bilinear interpolation, [B, H, W] in [0, 1]."""
    height, width = x_BCHW.shape[-2:]
    return torch.stack([enlarged(found, (height, width)) for found in gms_scales(x_BCHW, y_BCHW)]).mean(0)


def gradient_distance(x_BCHW: Tensor, y_BCHW: Tensor, scales: int) -> Tensor:
    """How unlike the grey images' gradient vectors are at each pixel, mean over scales, [B, H, W] in [0, 2].

    GMS with vectors in place of their lengths: an edge that is as steep but runs otherwise is unlike, too.
    On the guesses of a linear model that found more than lengths did, on brains and on solar cells.
    In place of B any axes will do that broadcast: one image may be compared with several.
    """
    x_BHW, y_BHW = x_BCHW.mean(-3), y_BCHW.mean(-3)
    height, width = (int(side) for side in x_BHW.shape[-2:])
    raised = []
    for scale in range(scales):
        if scale:
            x_BHW, y_BHW = _halved(x_BHW), _halved(y_BHW)
        (x_across, x_down), (y_across, y_down) = _prewitt(x_BHW), _prewitt(y_BHW)
        alike = x_across * y_across + x_down * y_down
        lengths = (x_across.square() + x_down.square()) + (y_across.square() + y_down.square())
        found = 1 - (2 * alike + GMS_C) / (lengths + GMS_C)
        raised.append(resampled(found, (height, width), "linear") if scale else found)
    return torch.stack(raised).mean(0)


def reconstruction_loss(
    x_BCHW: Tensor, y_BCHW: Tensor, mean: Callable[[Tensor], Tensor] = torch.mean
) -> dict[str, Tensor]:
    """Scalars: `loss`, and the three terms it is the sum of: `mse`, `gms` (mean over scales) and `ssim` (1 - SSIM).

    Args:
        x_BCHW: images.
        y_BCHW: their reconstructions.
        mean: how values become one; that of a `Runtime` counts in all ranks' images.
    """
    mse = mean(F.mse_loss(y_BCHW, x_BCHW, reduction="none"))
    gms = torch.stack([mean(found) for found in gms_scales(x_BCHW, y_BCHW)]).mean()
    structure = 1 - mean(ssim(x_BCHW, y_BCHW))
    return {"loss": mse + gms + structure, "mse": mse, "gms": gms, "ssim": structure}


def _gradient(images_BCHW: Tensor) -> Tensor:
    """Prewitt's gradient magnitude of the median-filtered grey image, [B, H, W]."""
    across, down = _prewitt(median(images_BCHW.mean(1)))
    return (across.square() + down.square() + EPSILON).sqrt()


def _halved(maps_BHW: Tensor) -> Tensor:
    """The means of 2x2 pixels, [..., H // 2, W // 2]."""
    height, width = (int(side) // 2 * 2 for side in maps_BHW.shape[-2:])
    rows = maps_BHW[..., 0:height:2, :] + maps_BHW[..., 1:height:2, :]
    return (rows[..., 0:width:2] + rows[..., 1:width:2]) / 4


def _prewitt(grey_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Prewitt's derivatives across and down, each [..., H, W]."""
    # Mirrored at the border; `F.pad` takes no empty batch of maps, which a worker's share may be.
    taller = torch.cat([grey_BHW[..., 1:2, :], grey_BHW, grey_BHW[..., -2:-1, :]], -2)
    padded = torch.cat([taller[..., 1:2], taller, taller[..., -2:-1]], -1)
    rows = (padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]) / 3
    columns = (padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]) / 3
    return rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]


def median(maps_BHW: Tensor) -> Tensor:
    """The 3x3 median: of a sorted column's minima the largest, of its maxima the smallest, and the medians' median."""
    padded = F.pad(maps_BHW.unsqueeze(1), (1, 1, 1, 1), mode="reflect").squeeze(1)
    above, here, below = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    low, high = torch.minimum(above, here), torch.maximum(above, here)
    low, middle, high = (torch.minimum(low, below), _median_of_3(above, here, below), torch.maximum(high, below))

    def neighbours(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return z[:, :, :-2], z[:, :, 1:-1], z[:, :, 2:]

    a, b, c = neighbours(low)
    largest_low = torch.maximum(torch.maximum(a, b), c)
    a, b, c = neighbours(high)
    smallest_high = torch.minimum(torch.minimum(a, b), c)
    return _median_of_3(largest_low, _median_of_3(*neighbours(middle)), smallest_high)


def _median_of_3(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
