"""DICOM's greyscale transformation of a frame: stored -> modality -> VOI -> MONOCHROME1 inversion -> [0, 1].

Everything is float64 until the result, so that a MONOCHROME1 frame and its MONOCHROME2 twin come out alike and sixteen
stored bits stay sixteen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ad_jobs.images import window
from ad_jobs.images.attributes import numbers
from ad_jobs.images.libraries import foreign
from ad_jobs.images.lut import Grey, map_values
from ad_jobs.images.modality_lut import modality_transformation
from ad_jobs.images.picture import check_finite
from ad_jobs.images.policy import Window
from ad_jobs.images.voi_lut import voi_transformation


def greyscale(
    stored: npt.NDArray[Any], ds: Any, frame: int, photometric: str, policy: Window
) -> npt.NDArray[np.float32]:
    """Stored values [rows, columns] of `frame` as float32 in [0, 1], 1 = white.

    Raises:
        ImageError: values that are not finite, as stored or rescaled, or numbers of the header that cannot be read.
    """
    with foreign("greyscale attributes"):
        modality, full_range = modality_transformation(ds, frame)
        own = voi_transformation(ds, frame, full_range)
        padding = _padding(stored, ds) if policy == "percentile" else None

    def shown(of: Grey) -> npt.NDArray[np.float32]:
        # What overflows is looked for below, in the result.
        with np.errstate(over="ignore", invalid="ignore"):
            values = modality(of)
        check_finite(values, frame)
        found = window.apply(values, policy, own, padding)
        # PS3.3 C.7.6.3.1.2: MONOCHROME1 shows its minimum as white, after any VOI transformation.
        # Presentation LUT Shape says the same of the same images (C.8.11.3.1.2: INVERSE goes with MONOCHROME1) and
        # must not invert once more.
        return ((1.0 - found) if photometric == "MONOCHROME1" else found).astype(np.float32)

    return shown(stored.astype(np.float64)) if policy == "percentile" else map_values(stored, shown)


def _padding(stored: npt.NDArray[Any], ds: Any) -> npt.NDArray[np.bool_] | None:
    """The pixels outside the picture, PS3.3 C.7.5.1.1.2: a stored value or a range."""
    value = numbers(ds.get("PixelPaddingValue"))
    if not value:
        return None
    limit = numbers(ds.get("PixelPaddingRangeLimit")) or value
    low, high = sorted((value[0], limit[0]))
    return (stored >= low) & (stored <= high)
