"""What of its grey values a DICOM object itself asks to be shown: its VOI LUT or window, PS3.3 C.11.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ad_jobs.images import window
from ad_jobs.images.attributes import functional_group, numbers
from ad_jobs.images.lut import Grey, first_lut, lookup
from ad_jobs.images.pixel_module import PixelModule
from ad_jobs.images.remarks import Remark


def voi_transformation(
    ds: Any, frame: int, full_range: tuple[float, float] | None, module: PixelModule, remarks: set[str]
) -> Callable[[Grey], Grey]:
    """From modality units to [0, 1]: by the object's VOI LUT, else its first usable window, else its full range.

    `full_range` is what the modality transformation can give; None for floating point, which goes by its own values.
    """
    # PS3.3 C.7.6.16.2.10: Frame VOI LUT, of the frame or shared; else C.11.2 of the whole object.
    group = functional_group(ds, frame, "FrameVOILUTSequence")
    source = ds if group is None else group
    if source.get("VOILUTSequence"):
        # PS3.3 C.11.2: LUT and window are alternatives; the LUT is the more exact one. C.11.2.1.1: the first item.
        lut = first_lut(source.VOILUTSequence, full_range, remarks, little=module.little)
        if lut is not None:
            return lambda values: lookup(values, lut) / lut.full_scale
        remarks.add(Remark.VOI_LUT)
    name = str(source.get("VOILUTFunction") or "LINEAR").strip().upper()
    # PS3.3 C.11.2.1.3: absent or unknown means LINEAR.
    function = {"LINEAR_EXACT": window.linear_exact, "SIGMOID": window.sigmoid}.get(name, window.linear)
    # PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3 (the others).
    least = 1.0 if function is window.linear else np.nextafter(0.0, 1.0)
    for center, width in zip(numbers(source, "WindowCenter"), numbers(source, "WindowWidth"), strict=False):
        if center is not None and width is not None and width >= least:
            return lambda values: function(values, center, width)
        # Writers that have no window put 0 0. Such a pair is no window, and no contradiction.
        if (center, width) != (0.0, 0.0):
            remarks.add(Remark.WINDOW)
    if full_range is None:
        return lambda values: window.spread(values, *window.float_range(values))
    return lambda values: window.spread(values, *full_range)
