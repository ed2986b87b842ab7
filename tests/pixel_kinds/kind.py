"""What a kind of pixels is, and what files of one are made with."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import dicomkit as kit
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ad_jobs.images.policy import Window

Array = npt.NDArray[Any]

NATIVE = tuple(kit.NATIVE)
COMPRESSED = tuple(kit.SYNTAXES)
ALL = (*NATIVE, *COMPRESSED)
# Those whose code stream has a precision of its own.
PRECISE = ("jpeg-lossless", "jpeg2000")
JPEG_FAMILY = ("jpeg-lossless", "jpeg-ls", "jpeg2000")
ANGIOGRAPHY = "1.2.840.10008.5.1.4.1.1.12.1"


class Kind(NamedTuple):
    """A kind, one of its variants, and what is wanted of it: a picture in [0, 1], or what a refusal names."""

    title: str
    variant: str
    clause: str
    build: Callable[[str], bytes]
    want: Array | str
    remark: str | None = None
    forms: tuple[str, ...] = ALL
    window: Window = "dicom"
    frame: int = 0
    # Why DCMTK shows another picture, or none, and in which forms if not in all; no text where it must agree.
    differs: str = ""
    differs_in: tuple[str, ...] = ALL
    # How far off DCMTK's rounding may be.
    rounded: float = 0.0


# 0 to 4063 of twelve bits.
RAMP = kit.ramp() * 17
SHOWN = RAMP / 4095
FRAMES = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1], np.flip(RAMP)])
_RNG = np.random.default_rng(11)
RGB = _RNG.integers(0, 256, (kit.ROWS, kit.COLUMNS, 3), dtype=np.uint8)
# A table that no straight line is mistaken for: 2048 entries of twelve bits.
CURVE = np.rint(4095 * np.linspace(0, 1, 2048) ** 2).astype(int)


def of(
    pixels: Array, bits: int | None = None, precision: int | None = None, **attributes: Any
) -> Callable[[str], bytes]:
    """Files of these pixels and attributes in the form asked for."""
    return lambda form: kit.in_form(kit.dataset(pixels, bits=bits, **deepcopy(attributes)), form, precision)


def changed(pixels: Array, change: Callable[[Dataset], object], bits: int | None = None) -> Callable[[str], bytes]:
    """The same, of a data set that is spoilt after its pixels were encoded."""

    def build(form: str) -> bytes:
        ds = kit.dataset(pixels, bits=bits)
        if form not in kit.NATIVE:
            kit.encapsulated(ds, kit.codes(ds, form))
        change(ds)
        ds.file_meta.TransferSyntaxUID = kit.FORMS[form]
        if form == "big endian":
            kit.swap_words(ds)
        return kit.encode(ds)

    return build


def having(**attributes: Any) -> Callable[[Dataset], object]:
    """A change of attributes; None removes."""

    def change(ds: Dataset) -> None:
        for keyword, value in attributes.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)

    return change


def table(first: int, entries: Array, bits: int, *, vr: str = "US", count: int | None = None, **more: Any) -> Sequence:
    """A Modality or VOI LUT Sequence; the first value is written as the word that it is."""
    made = kit.item(LUTDescriptor=[count or len(entries), first & 0xFFFF, bits], **more)
    made["LUTDescriptor"].VR = "US"
    made.LUTData = entries.astype("<u2").tobytes() if vr == "OW" else [int(entry) for entry in entries]
    made["LUTData"].VR = vr
    return Sequence([made])


def empty_table() -> Sequence:
    made = kit.item(LUTDescriptor=None, LUTData=None)
    made["LUTDescriptor"].VR = made["LUTData"].VR = "US"
    return Sequence([made])


def curved(values: Array, first: int = 0) -> Array:
    """Values by CURVE, beyond its ends by these."""
    return CURVE[np.clip(values.astype(int) - first, 0, len(CURVE) - 1)] / 4095


def windowed(values: Array, center: float, width: float) -> Array:
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
