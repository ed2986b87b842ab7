"""From stored values to modality units, Hounsfield units of a CT: the Modality LUT or the rescale, PS3.3 C.11.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.attributes import functional_group, numbers
from ad_jobs.images.lut import Grey, lookup, read_lut


def modality_transformation(ds: Any, frame: int) -> tuple[Callable[[Grey], Grey], tuple[float, float] | None]:
    """The modality transformation of a frame, and the full range of its output (None: floating point)."""
    bounds = stored_range(ds)
    # PS3.3 C.11.1: the table, or the rescale, never both.
    if ds.get("ModalityLUTSequence"):
        lut = read_lut(ds.ModalityLUTSequence[0])
        return lambda values: lookup(values, lut), (0.0, float(lut.full_scale))
    # PS3.3 C.7.6.16.2.9: Pixel Value Transformation, of the frame or shared; else C.11.1 of the whole object.
    group = functional_group(ds, frame, "PixelValueTransformationSequence")
    source = ds if group is None else group
    slope = (numbers(source.get("RescaleSlope")) or [1.0])[0]
    intercept = (numbers(source.get("RescaleIntercept")) or [0.0])[0]
    if bounds is not None:
        # A negative slope turns the range around.
        low, high = sorted(end * slope + intercept for end in bounds)
        bounds = (low, high)
    # PS3.3 C.11.1.1.2: output = m * SV + b.
    return lambda values: values * slope + intercept, bounds


def stored_range(ds: Any) -> tuple[float, float] | None:
    """Lowest and highest stored value that Bits Stored can hold; None for floating point pixels.

    PS3.3 C.7.6.3.1.1 (Bits Stored, Pixel Representation).

    Raises:
        ImageError: Bits Stored is no number of bits.
    """
    # PS3.3 C.7.6.24: floating point pixels have no Bits Stored.
    if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds:
        return None
    bits = int(ds.BitsStored)
    if not 1 <= bits <= 64:
        raise ImageError(ErrorCode.CORRUPT, f"bits stored is {bits}")
    if ds.get("PixelRepresentation") == 1:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1
