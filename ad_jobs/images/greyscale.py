"""DICOM's greyscale transformation of a frame: stored -> modality -> VOI -> MONOCHROME1 inversion -> [0, 1].

Everything is float64 until the result, so that a MONOCHROME1 frame and its MONOCHROME2 twin come out alike and sixteen
stored bits stay sixteen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ad_jobs.images import window
from ad_jobs.images.attributes import is_implicit, numbers
from ad_jobs.images.libraries import foreign
from ad_jobs.images.lut import Grey, map_values
from ad_jobs.images.modality_lut import modality_transformation
from ad_jobs.images.picture import check_finite
from ad_jobs.images.pixel_module import PixelModule
from ad_jobs.images.policy import Window
from ad_jobs.images.remarks import Remark
from ad_jobs.images.voi_lut import voi_transformation


def greyscale(
    stored: npt.NDArray[Any], ds: Any, frame: int, module: PixelModule, policy: Window, remarks: set[str]
) -> npt.NDArray[np.float32]:
    """Stored values [rows, columns] of `frame` as float32 in [0, 1], 1 = white.

    `remarks` grows by what is assumed where the header contradicts itself.

    Raises:
        ImageError: values that are not finite, as stored or rescaled.
    """
    with foreign("greyscale attributes"):
        modality, full_range = modality_transformation(ds, frame, module, remarks)
        # Only who asks the object is told of its window.
        told = remarks if policy == "dicom" else set()
        own = voi_transformation(ds, frame, full_range, module, told)
        # PS3.3 C.8.11.3.1.2: INVERSE goes with MONOCHROME1, IDENTITY with the other.
        shape = str(ds.get("PresentationLUTShape") or "").strip().upper()
        if shape == ("IDENTITY" if module.photometric == "MONOCHROME1" else "INVERSE"):
            remarks.add(Remark.SHAPE)
        padding = _padding(stored, ds, module, remarks) if policy == "percentile" else None

    def shown(of: Grey) -> npt.NDArray[np.float32]:
        # What overflows is looked for below, in the result.
        with np.errstate(over="ignore", invalid="ignore"):
            values = modality(of)
        check_finite(values, frame)
        found = window.apply(values, policy, own, padding)
        # PS3.3 C.7.6.3.1.2: MONOCHROME1 shows its minimum as white, after any VOI transformation.
        # Presentation LUT Shape says the same of the same images, and must not invert once more.
        return ((1.0 - found) if module.photometric == "MONOCHROME1" else found).astype(np.float32)

    return shown(stored.astype(np.float64)) if policy == "percentile" else map_values(stored, shown)


def _padding(stored: npt.NDArray[Any], ds: Any, module: PixelModule, remarks: set[str]) -> npt.NDArray[np.bool_] | None:
    """The pixels outside the picture, PS3.3 C.7.5.1.1.2: a stored value or a range."""
    value = _padding_value(ds, "PixelPaddingValue", module, remarks)
    if value is None:
        return None
    limit = _padding_value(ds, "PixelPaddingRangeLimit", module, remarks)
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _padding_value(ds: Any, keyword: str, module: PixelModule, remarks: set[str]) -> float | None:
    """The attribute's value as a stored value: its sign is Pixel Representation's, whatever its own representation."""
    said = (numbers(ds, keyword) or [None])[0]
    if said is None or module.floating or said != int(said):
        return said
    low, high = module.stored_range
    # As a word, and if that is no stored value, as the bits of one.
    value = _in_bits(int(said), 16, signed=module.signed)
    if not low <= value <= high:
        value = _in_bits(int(said), module.stored, signed=module.signed)
    if value != said and not is_implicit(ds):
        remarks.add(Remark.PADDING)
    return value


def _in_bits(value: int, bits: int, *, signed: bool) -> int:
    """The lowest bits of a value, in two's complement if `signed`."""
    lowest = value & ((1 << bits) - 1)
    return lowest - (1 << bits) if signed and lowest >> (bits - 1) else lowest
