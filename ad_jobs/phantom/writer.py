"""The files of a phantom archive: DICOM objects, masks, and the record of what they hold."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ad_jobs.errors import ErrorCode
from ad_jobs.phantom import broken as broken_objects
from ad_jobs.phantom.identifiers import Planted
from ad_jobs.phantom.objects import NON_IMAGE_MODALITIES, image_bytes, non_image_bytes
from ad_jobs.phantom.patients import LEVELS, SLICES, Patient, patients
from ad_jobs.phantom.scanners import SCANNERS

# Of a multi-frame object.
FRAMES = 4


class Label(NamedTuple):
    """A row of labels.csv: one good frame of the archive."""

    image: str
    anomalous: int
    mask: str
    frame: int
    group: str


@dataclass
class Writer:
    """Writes objects and masks below `root`, and remembers what a scan has to find."""

    root: Path
    seed: int
    size_px: int
    planted: Planted = field(default_factory=Planted)
    labels: list[Label] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    images: int = 0

    def normals(self, split: str, count: int) -> None:
        """`count` normal slices, flat in the split's folder."""
        drawn = patients(split, self.seed)
        for index in range(count):
            slice_number = index % SLICES
            if slice_number == 0:
                patient = next(drawn)
            picture, _ = patient.picture(patient.level(slice_number), self.size_px, lesion=False)
            data = image_bytes(patient.study, slice_number + 1, [picture], patient.syntax(slice_number))
            self._write(f"{split}/{patient.number:04d}-{slice_number + 1:02d}.dcm", data)
            self.planted.add(patient.planted.words)

    def singles(self, drawn: Iterator[Patient], lesions: NDArray[np.bool_]) -> None:
        """One slice an entry of `lesions`, several a patient, normal and abnormal mixed."""
        for index, lesion in enumerate(lesions):
            slice_number = index % SLICES
            if slice_number == 0:
                patient = next(drawn)
            picture, mask = patient.picture(patient.level(slice_number), self.size_px, bool(lesion))
            data = image_bytes(patient.study, slice_number + 1, [picture], patient.syntax(slice_number))
            self._good(patient, slice_number + 1, data, [mask])

    def multiframe(self, patient: Patient, lesion: bool) -> None:
        """One object of several frames, neighbours from bottom to top; with a lesion in the middle ones."""
        frames, masks = [], []
        for frame, level in enumerate(np.linspace(*LEVELS, FRAMES)):
            abnormal = lesion and 0 < frame < FRAMES - 1
            picture, mask = patient.picture(float(level), self.size_px, abnormal)
            frames.append(picture)
            masks.append(mask)
        self._good(patient, 1, image_bytes(patient.study, 1, frames, patient.syntax(0)), masks)

    def bad(self, patient: Patient, kind: str) -> None:
        """One broken object, or one without an image."""
        if kind in NON_IMAGE_MODALITIES:
            suffix, data, expected = ".dcm", non_image_bytes(patient.study, 1, kind), ErrorCode.NOT_AN_IMAGE
        else:
            picture, _ = patient.picture(patient.level(0), self.size_px, lesion=False)
            suffix, data, expected = broken_objects.broken(kind, patient.study, 1, picture)
        name = f"archive/{patient.folder}/IM0001{suffix}"
        self._write(name, data)
        self.expected[name.removeprefix("archive/")] = str(expected)
        # Some of these files hold but a few of the patient's identifiers, the empty one none.
        self.planted.add(word for word in patient.planted.words if word.encode() in data)

    def _good(self, patient: Patient, number: int, data: bytes, masks: list[NDArray[np.bool_] | None]) -> None:
        # Every fourth scanner's export has names without an ending: the content tells, not the name.
        suffix = "" if patient.number % len(SCANNERS) == len(SCANNERS) - 1 else ".dcm"
        image = f"archive/{patient.folder}/IM{number:04d}{suffix}"
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
            self.labels.append(Label(image, int(mask is not None), name, frame, f"p{patient.number:04d}"))

    def _write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
