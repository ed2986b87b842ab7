"""DICOM's greyscale transformation of a frame: stored -> modality -> VOI -> MONOCHROME1 inversion -> [0, 1].

Takes any data set with pydicom's access by keyword. Everything is float64 until the result, so that a
MONOCHROME1 frame and its MONOCHROME2 twin come out alike and sixteen stored bits stay sixteen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import window
from ad_jobs.images.picture import check_finite, foreign
from ad_jobs.images.policy import Window
from ad_jobs.images.window import Grey


class Lut(NamedTuple):
    """A table of PS3.3 C.11.1.1 or C.11.2.1.1: the first value it maps, its entries, and its full scale."""

    first: int
    entries: npt.NDArray[Any]
    full_scale: int


def greyscale(
    stored: npt.NDArray[Any], ds: Any, frame: int, photometric: str, policy: Window
) -> npt.NDArray[np.float32]:
    """Stored values [rows, columns] of `frame` as float32 in [0, 1], 1 = white.

    Raises:
        ImageError: the values or what they are rescaled to are not finite, or the header's numbers cannot be
        read.
    """
    with foreign("greyscale attributes"):
        modality, full_range = _modality(ds, frame)
        own = _voi(ds, frame, full_range)
        padding = _padding(stored, ds) if policy == "percentile" else None

    def shown(of: Grey) -> npt.NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below, in the result
            values = modality(of)
        check_finite(values, frame)
        found = window.apply(values, policy, own, padding)
        # PS3.3 C.7.6.3.1.2: MONOCHROME1 shows its minimum as white, after any VOI transformation. Presentation
        # LUT Shape says the same of the same images (C.8.11.3.1.2: INVERSE goes with MONOCHROME1) and must not
        # invert once more.
        return ((1.0 - found) if photometric == "MONOCHROME1" else found).astype(np.float32)

    return shown(stored.astype(np.float64)) if policy == "percentile" else window.each(stored, shown)


def stored_range(ds: Any) -> tuple[float, float] | None:
    """Lowest and highest stored value that Bits Stored can hold; None for floating point pixels.

    PS3.3 C.7.6.3.1.1 (Bits Stored, Pixel Representation).
    """
    if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds:  # PS3.3 C.7.6.24: no Bits Stored
        return None
    bits = int(ds.BitsStored)
    if not 1 <= bits <= 64:
        raise ImageError(ErrorCode.CORRUPT, f"bits stored is {bits}")
    if ds.get("PixelRepresentation") == 1:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _modality(ds: Any, frame: int) -> tuple[Callable[[Grey], Grey], tuple[float, float] | None]:
    """The modality transformation of a frame, and the full range of its output (None: floating point)."""
    bounds = stored_range(ds)
    if ds.get("ModalityLUTSequence"):  # PS3.3 C.11.1: the table, or the rescale, never both
        lut = _lut(ds.ModalityLUTSequence[0])
        return lambda values: window.lookup(values, lut.first, lut.entries), (0.0, float(lut.full_scale))
    # PS3.3 C.7.6.16.2.9: Pixel Value Transformation, of the frame or shared; else C.11.1 of the whole object.
    group = _functional_group(ds, frame, "PixelValueTransformationSequence")
    source = ds if group is None else group
    slope = (_numbers(source.get("RescaleSlope")) or [1.0])[0]
    intercept = (_numbers(source.get("RescaleIntercept")) or [0.0])[0]
    if bounds is not None:
        # A negative slope turns the range around.
        low, high = sorted(end * slope + intercept for end in bounds)
        bounds = (low, high)
    return lambda values: values * slope + intercept, bounds  # PS3.3 C.11.1.1.2: output = m * SV + b


def _voi(ds: Any, frame: int, full_range: tuple[float, float] | None) -> Callable[[Grey], Grey]:
    """What the object itself asks for: its VOI LUT, else its first usable window, else its full range."""
    # PS3.3 C.7.6.16.2.10: Frame VOI LUT, of the frame or shared; else C.11.2 of the whole object.
    group = _functional_group(ds, frame, "FrameVOILUTSequence")
    source = ds if group is None else group
    if source.get("VOILUTSequence"):
        # PS3.3 C.11.2: LUT and window are alternatives; the LUT is the more exact one. C.11.2.1.1: first
        # item.
        lut = _lut(source.VOILUTSequence[0])
        return lambda values: window.lookup(values, lut.first, lut.entries) / lut.full_scale
    name = str(source.get("VOILUTFunction") or "LINEAR").upper()
    # PS3.3 C.11.2.1.3: absent or unknown means LINEAR.
    function = {"LINEAR_EXACT": window.linear_exact, "SIGMOID": window.sigmoid}.get(name, window.linear)
    least = 1.0 if function is window.linear else np.nextafter(0.0, 1.0)  # PS3.3 C.11.2.1.2.1, C.11.2.1.3
    pairs = zip(_numbers(source.get("WindowCenter")), _numbers(source.get("WindowWidth")), strict=False)
    for center, width in pairs:
        # Writers that have no window put 0 0. Such a pair is no window.
        if np.isfinite(center) and np.isfinite(width) and width >= least:
            return lambda values: function(values, center, width)
    if full_range is None:
        return lambda values: window.spread(values, *window.float_range(values))
    return lambda values: window.spread(values, *full_range)


def _padding(stored: npt.NDArray[Any], ds: Any) -> npt.NDArray[np.bool_] | None:
    """The pixels outside the picture, PS3.3 C.7.5.1.1.2: a stored value or a range."""
    value = _numbers(ds.get("PixelPaddingValue"))
    if not value:
        return None
    limit = _numbers(ds.get("PixelPaddingRangeLimit")) or value
    low, high = sorted((value[0], limit[0]))
    return (stored >= low) & (stored <= high)


def _lut(item: Any) -> Lut:
    """The LUT of a Modality or VOI LUT Sequence item."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 65536  # PS3.3 C.11.1.1.1: 0 stands for 2^16
    data = item.LUTData
    if isinstance(data, bytes):
        # OW: one entry a 16-bit word, in the object's byte order; 8-bit entries may come one a byte.
        order = "<" if getattr(item, "is_little_endian", None) is not False else ">"
        entries = np.frombuffer(data, np.uint8 if len(data) < 2 * count else f"{order}u2")
    else:
        entries = np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
    entries = entries[:count]
    if not entries.size:
        raise ImageError(ErrorCode.CORRUPT, "a LUT without entries")
    # PS3.3 C.11.1.1.1: the third value is the bits of an entry. Writers are known to give 8 for wider
    # entries.
    return Lut(first, entries, max(2**bits - 1, int(entries.max()), 1))


def _functional_group(ds: Any, frame: int, keyword: str) -> Any:
    """The item of a functional group macro that holds for `frame` (PS3.3 C.7.6.16), or None."""
    frames = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for group in [*frames[frame : frame + 1], *shared[:1]]:
        if group.get(keyword):
            return group[keyword].value[0]
    return None


def _numbers(value: Any) -> list[float]:
    """An attribute of any multiplicity as a list; absent and empty are []."""
    if value is None or value == "":
        return []
    many = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    return [float(number) for number in many if number is not None and number != ""]
