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

PHANTOM_PX = 512
# PSNR in dB, and quality of 100.
J2K_LOSSY_DB, JPEG_QUALITY = 45, 90


class Counts(NamedTuple):
    """At most so many pictures of a set: normal ones to fit and to calibrate on, normal and anomalous ones to judge."""

    fit: int
    calibration: int
    normal: int
    anomalous: int


MOST = Counts(fit=80, calibration=20, normal=24, anomalous=16)


class Picture(NamedTuple):
    """Stored values [rows, columns] of so many bits, what must not be split, and the header's attributes."""

    stored: NDArray[Any]
    bits: int
    group: str
    anomalous: bool
    attributes: dict[str, Any]


# To fit on, to calibrate on, to judge.
Pictures = tuple[list[Picture], list[Picture], list[Picture]]


def _split(name: str, enlarged: int) -> Pictures:
    """Pictures of a split file in ../shared/data."""
    data = ROOT.parent / "shared" / "data"
    rows = list(read_rows(data / "splits" / f"{name}.csv"))
    groups = {row["image"]: row.get("group") or row["image"] for row in read_rows(data / name / "labels.csv")}

    def pictures(split: str, anomalous: bool, most: int) -> list[Picture]:
        found = [row["image"] for row in rows if (row["split"], row["anomalous"]) == (split, str(int(anomalous)))]
        # Spread over the whole list: neighbours in it are alike.
        chosen = [found[n] for n in np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).astype(int))]
        return [Picture(_grey(data / name / image, enlarged), 8, groups[image], anomalous, {}) for image in chosen]

    tested = pictures("test", False, MOST.normal) + pictures("test", True, MOST.anomalous)
    return *_parted(pictures("train", False, MOST.fit + MOST.calibration)), tested


def _parted(normals: list[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Those to fit on, and some from everywhere among them to calibrate on."""
    every = len(normals) // MOST.calibration
    return [one for number, one in enumerate(normals) if number % every], normals[::every]


def _grey(path: Path, enlarged: int) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        grey = opened.convert("L")
    if enlarged > 1:
        grey = grey.resize((grey.width * enlarged, grey.height * enlarged), Image.Resampling.BICUBIC)
    return np.asarray(grey)


def _phantoms() -> Pictures:
    """Phantoms, a slice of each patient."""
    normals = list(islice(_slices("train", lesion=False), MOST.fit + MOST.calibration))
    tested = list(islice(_slices("archive", lesion=False), MOST.normal))
    return *_parted(normals), tested + list(islice(_slices("calibration", lesion=True), MOST.anomalous))


def _slices(split: str, *, lesion: bool) -> Iterator[Picture]:
    for patient in patients(split, 0):
        found, _ = patient.picture(patient.level(patient.number % 3), PHANTOM_PX, lesion)
        yield Picture(found.stored, 12, str(patient.number), lesion, _attributes(patient, found.windows))


def _attributes(patient: Patient, windows: list[tuple[float, float]]) -> dict[str, Any]:
    scanner = patient.study.scanner
    return {
        "PhotometricInterpretation": scanner.photometric,
        "RescaleSlope": scanner.slope,
        "RescaleIntercept": scanner.intercept,
        "WindowCenter": windows[0][0],
        "WindowWidth": windows[0][1],
    }


SETS: dict[str, Callable[[], Pictures]] = {
    "br35h": partial(_split, "br35h", 1),
    "br35h doubled": partial(_split, "br35h", 2),
    "elpv": partial(_split, "elpv", 1),
    "elpv doubled": partial(_split, "elpv", 2),
    "phantoms": _phantoms,
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
