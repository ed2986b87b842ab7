"""From stored values to modality units, Hounsfield units of a CT: the Modality LUT or the rescale, PS3.3 C.11.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ad_jobs.images.attributes import functional_group, numbers
from ad_jobs.images.lut import Grey, first_lut, lookup
from ad_jobs.images.pixel_module import PixelModule
from ad_jobs.images.remarks import Remark

# X-ray angiography, radiofluoroscopy, and the retired biplane class.
_XA_XRF = tuple(f"1.2.840.10008.5.1.4.1.1.12.{number}" for number in (1, 2, 3))
Transformation = tuple[Callable[[Grey], Grey], tuple[float, float] | None]


def modality_transformation(ds: Any, frame: int, module: PixelModule, remarks: set[str]) -> Transformation:
    """The modality transformation of a frame, and the full range of its output (None: floating point)."""
    low, high = (float(end) for end in module.stored_range)
    bounds = None if module.floating else (low, high)
    # PS3.3 C.8.7.1.1.2: of a logarithmic or another relationship, it leads back to X-ray intensity, not to a display.
    relationship = str(ds.get("PixelIntensityRelationship") or "").strip().upper()
    if relationship in ("LOG", "DISP") and str(ds.get("SOPClassUID") or "") in _XA_XRF:
        return lambda values: values, bounds
    # PS3.3 C.11.1: the table, or the rescale, never both.
    if ds.get("ModalityLUTSequence"):
        lut = first_lut(ds.ModalityLUTSequence, bounds, remarks, little=module.little)
        if lut is not None:
            return lambda values: lookup(values, lut), (0.0, float(lut.full_scale))
        remarks.add(Remark.MODALITY_LUT)
    # PS3.3 C.7.6.16.2.9: Pixel Value Transformation, of the frame or shared; else C.11.1 of the whole object.
    group = functional_group(ds, frame, "PixelValueTransformationSequence")
    slope, intercept = _rescale(ds if group is None else group, remarks)
    if bounds is not None:
        # A negative slope turns the range around.
        low, high = sorted(end * slope + intercept for end in bounds)
        bounds = (low, high)
    # PS3.3 C.11.1.1.2: output = m * SV + b.
    return lambda values: values * slope + intercept, bounds


def _rescale(source: Any, remarks: set[str]) -> tuple[float, float]:
    """Slope and intercept; 1 and 0, as without them, where one of them is no number or the slope makes all alike."""
    slopes, intercepts = numbers(source, "RescaleSlope"), numbers(source, "RescaleIntercept")
    slope, intercept = (slopes or [1.0])[0], (intercepts or [0.0])[0]
    if not slope or intercept is None:
        remarks.add(Remark.RESCALE)
        return 1.0, 0.0
    # PS3.3 C.11.1: each requires the other.
    if bool(slopes) != bool(intercepts):
        remarks.add(Remark.RESCALE_PART)
    return slope, intercept
