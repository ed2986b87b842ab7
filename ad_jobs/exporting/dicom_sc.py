"""A frame with its heatmap over it as Secondary Capture (PS3.3 A.8.1): a picture that every viewer shows."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from ad_jobs.exporting.dicom_header import Header, Plane
from ad_jobs.exporting.dicom_made import Maker
from ad_jobs.exporting.originals import Row
from ad_jobs.images.attributes import numbers

# The purpose of a reference to it, PS3.16 CID 7202.
_SOURCE = CodedConcept("121322", "DCM", "Source image for image processing operation")
# PS3.3 C.7.6.1.1.1: towards the left, the back and the head a patient's axes ascend.
_TOWARDS = (("L", "R"), ("P", "A"), ("H", "F"))
# Directions that a plane leans into by less are not named.
_LEANING = 1e-4


def secondary_capture(
    maker: Maker, header: Header, row: Row, pixels: npt.NDArray[np.uint8], number: int
) -> tuple[str, bytes]:
    """(SOP Instance UID, bytes) of the picture [rows, columns, 3], the `number`-th of its series from 1."""
    model_id, frame = row["model_id"], int(row["frame"])
    plane = header.plane(frame)
    uid = maker.uid(header.sop, frame, model_id)
    source = header.stand_in()
    made = SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        # Replaced below: it may be unknown, which highdicom does not allow.
        patient_orientation=("L", "P"),
        study_instance_uid=source.StudyInstanceUID,
        sop_instance_uid=uid,
        instance_number=number,
        pixel_spacing=None if plane is None else plane.spacing,
        **maker.series(header, model_id),
    )
    made.PatientOrientation = _orientation(header) if plane is None else [*map(_facing, _directions(plane))]
    if plane is None:
        _keep_aspect(made, header)
    if (burned_in := header.value("BurnedInAnnotation")) in ("YES", "NO"):
        made.BurnedInAnnotation = burned_in
    made.DerivationDescription = f"Heatmap laid over the frame by {maker.of_whom(model_id)}"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.sop_class, header.sop
    reference.PurposeOfReferenceCodeSequence = [_SOURCE]
    made.SourceImageSequence = [reference]
    header.refer(made, frame)
    header.mark_image(made)
    return uid, maker.stamped(made, header)


def _orientation(header: Header) -> list[str]:
    """What the source says of the directions of a row and of a column; nothing where that is none."""
    given = header.value("PatientOrientation")
    found = [str(one) for one in given] if isinstance(given, Iterable) and not isinstance(given, str) else []
    return found if len(found) == 2 and all(re.fullmatch("[LRPAHF]{1,3}", one) for one in found) else []


def _directions(plane: Plane) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return plane.orientation[:3], plane.orientation[3:]


def _facing(cosines: tuple[float, ...]) -> str:
    """The letters of a direction in the patient, the one that it mostly has first."""
    axes = sorted(zip(cosines, _TOWARDS, strict=True), key=lambda axis: -abs(axis[0]))
    return "".join(up if cosine > 0 else down for cosine, (up, down) in axes if abs(cosine) > _LEANING)


def _keep_aspect(made: Dataset, header: Header) -> None:
    """Give the picture its pixels' shape where its place in the patient is not known (PS3.3 C.7.6.3.1.7)."""
    shown = Dataset()
    for keyword in ("PixelSpacing", "PixelAspectRatio", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        if (value := header.value(keyword)) is None:
            continue
        setattr(shown, keyword, value)
        pair = numbers(shown, keyword)
        if len(pair) != 2 or not all(one is not None and one > 0 for one in pair):
            continue
        if keyword == "PixelSpacing":
            made.PixelSpacing = value
        elif pair[0] != pair[1]:
            ratio = float(pair[0] or 1) / float(pair[1] or 1)
            made.PixelAspectRatio = [round(1000 * ratio), 1000]
        return
