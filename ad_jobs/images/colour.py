"""Stored values in colour to [0, 1]: YCbCr to RGB and palettes, PS3.3 C.7.6.3.1.2 and C.7.9."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.lut import Lut, positions, read_lut
from ad_jobs.images.pixel_module import PALETTE, YBR, PixelModule
from ad_jobs.images.segmented_lut import expand

Array = npt.NDArray[Any]

# R, G and B by Y, Cb and Cr, less their offsets, PS3.3 C.7.6.3.1.2: of full range, and of video's range.
_FULL = np.array([[1.0, 0.0, 1.402], [1.0, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587], [1.0, 1.772, 0.0]])
_PARTIAL = _FULL * [255 / 219, 255 / 224, 255 / 224]
_COLOURS = ("Red", "Green", "Blue")


def to_rgb(stored: Array, ds: Any, module: PixelModule, remarks: set[str]) -> npt.NDArray[np.float32]:
    """Stored values [rows, columns] of a palette, or [rows, columns, 3], as RGB in [0, 1]: colour has no window.

    Raises:
        ImageError: a palette that is missing or has no entries.
    """
    # PS3.3 C.11.2 is for grey alone: colour goes by its full scale.
    if module.photometric == PALETTE:
        return _by_palette(stored, ds, module, remarks)
    if module.floating:
        return stored.astype(np.float32)
    full_scale = np.float32(module.stored_range[1])
    if module.photometric in YBR:
        return _ybr(stored, module) / full_scale
    return stored.astype(np.float32) / full_scale


def _ybr(stored: Array, module: PixelModule) -> npt.NDArray[np.float32]:
    partial = module.photometric == "YBR_PARTIAL_422"
    # The clause gives 8 bits; more scale with them.
    unit = 2.0 ** (module.stored - 8)
    offsets = np.array([16 if partial else 0, 128, 128]) * unit
    matrix = (_PARTIAL if partial else _FULL).astype(np.float32)
    rgb: npt.NDArray[np.float32] = (stored - offsets.astype(np.float32)) @ matrix.T
    return rgb


def _by_palette(stored: Array, ds: Any, module: PixelModule, remarks: set[str]) -> npt.NDArray[np.float32]:
    # A fourth table is alpha, for blending.
    tables = [_table(ds, f"{colour}PaletteColorLookupTable", module, remarks) for colour in _COLOURS]
    # One scale for the three: a table that never gets bright is not to be stretched.
    full_scale = np.float32(max(lut.full_scale for lut in tables))
    # Entries that are wider than their descriptor says are words.
    if full_scale > max(lut.said_scale for lut in tables):
        full_scale = np.float32(0xFFFF)
    return np.stack([(lut.entries / full_scale)[positions(stored, lut)] for lut in tables], axis=-1)


def _table(ds: Any, name: str, module: PixelModule, remarks: set[str]) -> Lut:
    found = None
    if f"{name}Data" in ds:
        found = read_lut(ds, name, module.stored_range, remarks, little=module.little)
    elif f"Segmented{name}Data" in ds:
        found = read_lut(ds, f"Segmented{name}", module.stored_range, remarks, little=module.little, expand=expand)
    if found is None:
        raise ImageError(ErrorCode.CORRUPT, f"{name}Descriptor or {name}Data is missing or empty")
    return found
