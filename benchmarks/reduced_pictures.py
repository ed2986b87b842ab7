"""The pictures of benchmarks/reduced.py, and each in every form: its twins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ad_jobs.phantom.patients import Patient, patients
from benchmarks.datasets import read_rows

ROOT = Path(__file__).parents[1]
# The builder of test files, which is no package.
sys.path[:0] = [str(ROOT / "tests")]

# At it the narrowest scanner's matrix has four inputs of 128 px a side, and may be reduced for all of them.
PHANTOM_PX = 560
# PSNR in dB, and quality of 100.
J2K_LOSSY_DB, JPEG_QUALITY = 45, 90


class Picture(NamedTuple):
    """Stored values [rows, columns] of so many bits, what must not be split, and the header's attributes."""

    stored: NDArray[Any]
    bits: int
    group: str
    anomalous: bool
    attributes: dict[str, Any]


class PictureSet(NamedTuple):
    """At most so many normal and anomalous pictures; `of` is what sets of the same ones share."""

    of: str
    normal: int
    anomalous: int
    make: Callable[[bool, int], Iterator[Picture]]

    def pictures(self) -> Iterator[Picture]:
        """All of them, normal ones first."""
        yield from self.make(False, self.normal)
        yield from self.make(True, self.anomalous)


def _labelled(name: str, enlarged: int, anomalous: bool, most: int) -> Iterator[Picture]:
    """Pictures of a set in ../shared/data, spread over the whole list: neighbours in it are alike."""
    data = ROOT.parent / "shared" / "data" / name
    found = [row for row in read_rows(data / "labels.csv") if row["anomalous"] == str(int(anomalous))]
    for place in np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).astype(int)):
        row = found[place]
        yield Picture(_grey(data / row["image"], enlarged), 8, row["group"], anomalous, {})


def _grey(path: Path, enlarged: int) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        grey = opened.convert("L")
    if enlarged > 1:
        grey = grey.resize((grey.width * enlarged, grey.height * enlarged), Image.Resampling.BICUBIC)
    return np.asarray(grey)


def _phantoms(anomalous: bool, most: int) -> Iterator[Picture]:
    """Phantoms, a slice of each patient."""
    for patient in islice(patients("calibration" if anomalous else "train", 0), most):
        found, _ = patient.picture(patient.level(patient.number % 3), PHANTOM_PX, anomalous)
        yield Picture(found.stored, 12, str(patient.number), anomalous, _attributes(patient, found.windows))


def _attributes(patient: Patient, windows: list[tuple[float, float]]) -> dict[str, Any]:
    scanner = patient.study.scanner
    return {
        "PhotometricInterpretation": scanner.photometric,
        "RescaleSlope": scanner.slope,
        "RescaleIntercept": scanner.intercept,
        "WindowCenter": windows[0][0],
        "WindowWidth": windows[0][1],
    }


SETS = {
    "elpv doubled": PictureSet("elpv", 588, 30, partial(_labelled, "elpv", 2)),
    "phantoms": PictureSet("phantoms", 510, 30, _phantoms),
    "elpv": PictureSet("elpv", 588, 30, partial(_labelled, "elpv", 1)),
    "br35h doubled": PictureSet("br35h", 450, 30, partial(_labelled, "br35h", 2)),
    "boards": PictureSet("boards", 364, 30, partial(_labelled, "deeppcb", 1)),
}


def _j2k(picture: Picture, level: float) -> bytes:
    how = {"codecformat": "j2k", "reversible": level == 0, "bitspersample": picture.bits, "mct": False}
    return bytes(imagecodecs.jpeg2k_encode(picture.stored, level, **how))


def _of_whole_bytes(picture: Picture) -> Picture:
    """OpenJPH's binding encodes whole bytes, and the header must say as many bits."""
    return picture._replace(bits=8 * picture.stored.dtype.itemsize)


def _of_eight_bits(picture: Picture) -> Picture:
    """The upper eight bits, in the same modality units."""
    if picture.bits == 8:
        return picture
    step = 1 << (picture.bits - 8)
    slope = picture.attributes.get("RescaleSlope", 1.0) * step
    stored = (picture.stored >> (picture.bits - 8)).astype(np.uint8)
    return picture._replace(
        stored=stored, bits=8, attributes={"RescaleIntercept": 0.0, **picture.attributes, "RescaleSlope": slope}
    )


# By form: the transfer syntax (PS3.6 table A-1), what of the picture it takes, and its code stream; None is native.
FORMS: dict[str, tuple[str, Callable[[Picture], Picture], Callable[[Picture], bytes] | None]] = {
    "native": ("1.2.840.10008.1.2.1", lambda picture: picture, None),
    "J2K lossless": ("1.2.840.10008.1.2.4.90", lambda picture: picture, lambda p: _j2k(p, 0)),
    "J2K lossy": ("1.2.840.10008.1.2.4.91", lambda picture: picture, lambda p: _j2k(p, J2K_LOSSY_DB)),
    "HTJ2K": ("1.2.840.10008.1.2.4.201", _of_whole_bytes, lambda p: bytes(imagecodecs.htj2k_encode(p.stored))),
    "JPEG": (
        "1.2.840.10008.1.2.4.50",
        _of_eight_bits,
        lambda p: bytes(imagecodecs.jpeg8_encode(p.stored, level=JPEG_QUALITY)),
    ),
}


def twin(picture: Picture, form: str) -> bytes:
    """The picture as a DICOM file in one of FORMS."""
    import dicomkit as kit

    syntax, taken, encode = FORMS[form]
    picture = taken(picture)
    ds = kit.dataset(picture.stored, bits=picture.bits, **picture.attributes)
    if encode is not None:
        kit.encapsulated(ds, [encode(picture)])
        ds.file_meta.TransferSyntaxUID = syntax
    return kit.encode(ds)
