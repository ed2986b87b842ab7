"""What detectors do to a raw anomaly map: Gaussian blur, other sizes and grey opening, image by image."""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor


@lru_cache(maxsize=32)
def _blur_matrix(size: int, sigma_px: float, radius_px: int | None) -> Tensor:
    """[size, size] matrix that blurs a line as scipy does (reflected border, truncated at 4 sigma or `radius_px`)."""
    blurred = gaussian_filter1d(np.eye(size), sigma_px, axis=0, mode="reflect", radius=radius_px)
    return torch.from_numpy(blurred).float()


def gaussian_blur(maps_BHW: Tensor, sigma_px: float, *, radius_px: int | None = None) -> Tensor:
    """Blurred maps [..., H, W], equal to scipy.ndimage.gaussian_filter with its defaults; sigma 0 changes nothing.

    Args:
        maps_BHW: any number of leading axes.
        sigma_px: standard deviation.
        radius_px: where the kernel ends; 4 sigma by default.
    """
    if sigma_px <= 0:
        return maps_BHW
    height, width = maps_BHW.shape[-2:]
    maps_BHW = maps_BHW @ _blur_matrix(width, sigma_px, radius_px).to(maps_BHW).T
    return _blur_matrix(height, sigma_px, radius_px).to(maps_BHW) @ maps_BHW


def enlarged(maps_BHW: Tensor, size_px: tuple[int, int]) -> Tensor:
    """The maps [B, H, W] at another size by bilinear interpolation, corners of the images on corners."""
    return F.interpolate(maps_BHW.unsqueeze(1), size_px, mode="bilinear", align_corners=False).squeeze(1)


@lru_cache(maxsize=32)
def _resize_matrix(size: int, new: int, mode: Literal["area", "linear"]) -> Tensor:
    """[new, size] matrix that resamples a line as `F.interpolate` does, in float64."""
    line = torch.eye(size, dtype=torch.float64).unsqueeze(0)
    corners = False if mode == "linear" else None
    return F.interpolate(line, new, mode=mode, align_corners=corners).squeeze(0).T.contiguous()


def resampled(maps_BHW: Tensor, size_px: tuple[int, int], mode: Literal["area", "linear"]) -> Tensor:
    """The maps [..., H, W] at another size, by area or bilinear as `F.interpolate` does it.

    By two matrices: an inference engine multiplies them in float64, too, where it resizes and pools in float32 alone.
    """
    height, width = (int(side) for side in maps_BHW.shape[-2:])
    maps_BHW = maps_BHW @ _resize_matrix(width, size_px[1], mode).to(maps_BHW).T
    return _resize_matrix(height, size_px[0], mode).to(maps_BHW) @ maps_BHW


def cross_opening(maps_BHW: Tensor) -> Tensor:
    """Grey opening [B, H, W] with the 3x3 cross, pixels outside the image ignored (as OpenCV does).

    Thresholding a grey opening gives, at every threshold, the binary opening of the thresholded map: one pass
    replaces the thousand of the per-threshold definition.
    """
    eroded = _cross_reduce(maps_BHW, torch.minimum, float("inf"))
    return _cross_reduce(eroded, torch.maximum, float("-inf"))


def _cross_reduce(maps: Tensor, reduce: Callable[[Tensor, Tensor], Tensor], outside: float) -> Tensor:
    padded = F.pad(maps, (1, 1, 1, 1), value=outside)
    result = maps
    for neighbour in (padded[..., :-2, 1:-1], padded[..., 2:, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]):
        result = reduce(result, neighbour)
    return result
