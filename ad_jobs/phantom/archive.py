"""A phantom archive on disk, from a seed: what a first look at the program and its own tests run on.

OUT/train/*.dcm            normal slices, to fit a model on
OUT/calibration/*.dcm      normal slices of other patients
OUT/archive/**             what to scan: normal and anomalous, single and multi-frame, broken and no images
OUT/labels.csv             image, anomalous, mask, frame, group of the archive's good frames
OUT/masks/*.png            8-bit, 255 = abnormal
OUT/planted.txt            every identifier that stands in the files and must turn up nowhere else
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ad_jobs.errors import ErrorCode, UsageError
from ad_jobs.phantom import broken as broken_objects
from ad_jobs.phantom.anatomy import Head, draw_slice
from ad_jobs.phantom.identifiers import Person, Planted, Visit
from ad_jobs.phantom.lesions import add_lesion
from ad_jobs.phantom.objects import NON_IMAGE_MODALITIES, Study, image_bytes, non_image_bytes
from ad_jobs.phantom.scanners import SCANNERS, Acquired, acquire

_SLICES = 5  # of a patient
_LEVELS = (0.0, 0.8)  # from the basal ganglia to near the crown
_FRAMES = 4  # of a multi-frame object
_LABELS = ("image", "anomalous", "mask", "frame", "group")
_SPLITS = {"train": 1, "calibration": 2, "archive": 3}  # part of each patient's seed: never renumbered


class PhantomArchive(NamedTuple):
    """Where the parts of a phantom archive lie, and what a scan of `archive` has to find."""

    root: Path
    train: Path
    calibration: Path
    archive: Path
    labels: Path
    planted_file: Path
    planted: list[str]  # identifiers that must not leak
    images: int  # good objects of the archive, one of them maybe of several frames
    frames: int  # of the good objects: the rows of the labels
    anomalous: int  # frames with a lesion
    expected: dict[str, str]  # error code of every other object, by its path below `archive`

    @property
    def objects(self) -> int:
        """All objects below `archive`."""
        return self.images + len(self.expected)


class _Label(NamedTuple):
    image: str
    anomalous: int
    mask: str
    frame: int
    group: str


@dataclass
class _Patient:
    """One patient of a split, with a random stream of their own: no other patient's number depends on it."""

    split: str
    number: int
    rng: np.random.Generator
    head: Head
    study: Study
    planted: Planted

    def picture(self, level: float, size_px: int, lesion: bool) -> tuple[Acquired, NDArray[np.bool_] | None]:
        """A slice as the scanner stores it, and its mask if there is a lesion."""
        rows, columns = self.study.scanner.matrix(size_px)
        healthy = draw_slice(self.head, level, rows, columns, self.rng)
        if not lesion:
            return acquire(healthy.signal, self.study.scanner, self.rng), None
        grown = add_lesion(healthy, self.rng)
        return acquire(grown.signal, self.study.scanner, self.rng), grown.mask

    def syntax(self, number: int) -> str:
        """The transfer syntax of the patient's n-th object."""
        choice = self.study.scanner.syntaxes
        return choice[(self.number // len(SCANNERS) + number) % len(choice)]


@dataclass
class _Writer:
    root: Path
    seed: int
    size_px: int
    planted: Planted = field(default_factory=Planted)
    labels: list[_Label] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    images: int = 0

    def patients(self, split: str) -> Iterator[_Patient]:
        """Patients of a split without end, the scanners in turn."""
        number = 0
        while True:
            rng = np.random.default_rng([self.seed, _SPLITS[split], number])
            planted = Planted()
            person, visit = Person.draw(rng, planted), Visit.draw(rng, planted)
            study = Study(f"{self.seed}/{split}/{number}", person, visit, SCANNERS[number % len(SCANNERS)])
            yield _Patient(split, number, rng, Head.draw(rng), study, planted)
            number += 1

    def normals(self, split: str, count: int) -> None:
        """`count` normal slices, flat in the split's folder."""
        patients = self.patients(split)
        for index in range(count):
            slice_number = index % _SLICES
            if slice_number == 0:
                patient = next(patients)
            picture, _ = patient.picture(_level(patient, slice_number), self.size_px, lesion=False)
            data = image_bytes(patient.study, slice_number + 1, [picture], patient.syntax(slice_number))
            self._write(f"{split}/{patient.number:04d}-{slice_number + 1:02d}.dcm", data)
            self.planted.add(patient.planted.words)

    def singles(self, patients: Iterator[_Patient], lesions: NDArray[np.bool_]) -> None:
        """One slice an entry of `lesions`, several a patient, normal and abnormal mixed."""
        for index, lesion in enumerate(lesions):
            slice_number = index % _SLICES
            if slice_number == 0:
                patient = next(patients)
            picture, mask = patient.picture(_level(patient, slice_number), self.size_px, bool(lesion))
            data = image_bytes(patient.study, slice_number + 1, [picture], patient.syntax(slice_number))
            self._good(patient, slice_number + 1, data, [mask])

    def multiframe(self, patient: _Patient, lesion: bool) -> None:
        """One object of several frames, neighbours from bottom to top; with a lesion in the middle ones."""
        frames, masks = [], []
        for frame, level in enumerate(np.linspace(*_LEVELS, _FRAMES)):
            abnormal = lesion and 0 < frame < _FRAMES - 1
            picture, mask = patient.picture(float(level), self.size_px, abnormal)
            frames.append(picture)
            masks.append(mask)
        self._good(patient, 1, image_bytes(patient.study, 1, frames, patient.syntax(0)), masks)

    def bad(self, patient: _Patient, kind: str) -> None:
        """One broken object, or one without an image."""
        if kind in NON_IMAGE_MODALITIES:
            suffix, data, expected = ".dcm", non_image_bytes(patient.study, 1, kind), ErrorCode.NOT_AN_IMAGE
        else:
            picture, _ = patient.picture(_level(patient, 0), self.size_px, lesion=False)
            suffix, data, expected = broken_objects.broken(kind, patient.study, 1, picture)
        name = f"{_folder(patient)}/IM0001{suffix}"
        self._write(name, data)
        self.expected[name.removeprefix("archive/")] = str(expected)
        # Some of these files hold but a few of the patient's identifiers, the empty one none.
        self.planted.add(word for word in patient.planted.words if word.encode() in data)

    def _good(self, patient: _Patient, number: int, data: bytes, masks: list[NDArray[np.bool_] | None]) -> None:
        # Every fourth scanner's export has names without an ending: the content tells, not the name.
        suffix = "" if patient.number % len(SCANNERS) == len(SCANNERS) - 1 else ".dcm"
        image = f"{_folder(patient)}/IM{number:04d}{suffix}"
        self._write(image, data)
        self.planted.add(patient.planted.words)
        self.images += 1
        for frame, mask in enumerate(masks):
            name = ""
            if mask is not None:
                name = f"masks/{patient.number:04d}-{number:02d}-{frame:02d}.png"
                buffer = io.BytesIO()
                Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
                self._write(name, buffer.getvalue())
            self.labels.append(_Label(image, int(mask is not None), name, frame, f"p{patient.number:04d}"))

    def _write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def generate(
    out: Path | str,
    *,
    seed: int = 0,
    train: int = 200,
    calibration: int = 80,
    normals: int = 110,
    anomalous: int = 60,
    multiframe: int = 4,
    broken: int = 6,
    non_images: int = 3,
    size_px: int = 176,
) -> PhantomArchive:
    """A phantom archive written to the folder `out`; the same arguments give the same bytes.

    Args:
        out: a new or empty local folder.
        seed: of everything random.
        train: normal slices to fit on.
        calibration: normal slices of other patients.
        normals: normal slices among those to scan.
        anomalous: slices with a lesion.
        multiframe: objects of four frames, every second one with a lesion in two of them.
        broken: objects that cannot be read, the kinds in turn.
        non_images: SR, PR and KO objects in turn.
        size_px: nominal height and width; scanners differ by a few percent.

    Raises:
        UsageError: `out` is not an empty folder, or a number is out of range.
    """
    numbers = (train, calibration, normals, anomalous, multiframe, broken, non_images)
    if min(numbers) < 0 or seed < 0 or size_px < 32:
        raise UsageError(
            "A phantom archive needs counts and a seed of 0 or more, and slices of 32 pixels or more.",
            f"counts {numbers}, seed {seed}, size_px {size_px}",
            "Change the number that is too small.",
        )
    root = Path(out).resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError("A phantom archive is written to an empty folder.", root, "Name a new folder.")
    writer = _Writer(root, seed, size_px)
    writer.normals("train", train)
    writer.normals("calibration", calibration)
    patients = writer.patients("archive")
    lesions = np.arange(normals + anomalous) < anomalous
    np.random.default_rng([seed, 0]).shuffle(lesions)
    writer.singles(patients, lesions)
    for index in range(multiframe):
        writer.multiframe(next(patients), lesion=index % 2 == 1)
    for index in range(broken):
        writer.bad(next(patients), broken_objects.KINDS[index % len(broken_objects.KINDS)])
    for index in range(non_images):
        writer.bad(next(patients), NON_IMAGE_MODALITIES[index % len(NON_IMAGE_MODALITIES)])
    return _close(writer)


def _close(writer: _Writer) -> PhantomArchive:
    root = writer.root
    root.mkdir(parents=True, exist_ok=True)
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_LABELS)
        table.writerows(writer.labels)
    (root / "planted.txt").write_text("\n".join(writer.planted.words) + "\n", encoding="utf-8")
    return PhantomArchive(
        root=root,
        train=root / "train",
        calibration=root / "calibration",
        archive=root / "archive",
        labels=root / "labels.csv",
        planted_file=root / "planted.txt",
        planted=list(writer.planted.words),
        images=writer.images,
        frames=len(writer.labels),
        anomalous=sum(label.anomalous for label in writer.labels),
        expected=writer.expected,
    )


def _level(patient: _Patient, slice_number: int) -> float:
    """Slices go up through the head, never at quite the same levels."""
    low, high = _LEVELS
    at = low + (high - low) * slice_number / (_SLICES - 1)
    return float(np.clip(at + patient.rng.normal(0.0, 0.04), low, high))


def _folder(patient: _Patient) -> str:
    # Exports keep studies in folders; one ward's name has a space in it.
    site = ("site-a", "site-b", "ward 3", "site-b")[patient.number % 4]
    return f"archive/{site}/study-{patient.number:04d}"
