"""The header of a DICOM object that something is derived from: what names it, whose it is, where its frames lie."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.exporting.originals import Refused
from ad_jobs.exporting.tally import Refusal
from ad_jobs.images.attributes import functional_group, numbers
from ad_jobs.images.dicom_file import check_deflated_head
from ad_jobs.images.libraries import foreign, quiet
from ad_jobs.images.sniff import sniff

# PS3.3 C.7.1.1, C.7.2.1 and C.7.2.2: by these a PACS files an object; they go back to whom they came from.
_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_PATIENT_AND_STUDY = (
    *_TYPE_2,
    *("IssuerOfPatientID", "PatientBirthTime", "PatientSpeciesDescription", "PatientBreedDescription"),
    *("ResponsiblePerson", "ResponsiblePersonRole", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("StudyDescription", "PatientAge", "PatientState", "TimezoneOffsetFromUTC"),
)
# PS3.3 C.7.6.1.1.5: once lossy, always lossy.
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
# Directions that are no right angle by more than this are none of a plane.
_SKEW = 1e-3


class Plane(NamedTuple):
    """Where a frame lies (PS3.3 C.7.6.2): of its first pixel's centre x, y, z in mm, the direction cosines of a row and
    of a column, the distances between rows and between columns in mm; the slice's thickness, if it is known.
    """

    frame_of_reference: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float | None


class Header:
    """The header of one object.

    Raises:
        Refused: it is no DICOM, cannot be read, or lacks one of the UIDs that name it.
    """

    def __init__(self, data: bytes) -> None:
        if sniff(data[:4096]) != "dicom":
            raise Refused(Refusal.NOT_DICOM)
        try:
            with quiet(), foreign("pydicom header"):
                check_deflated_head(data)
                self._ds = pydicom.dcmread(BytesIO(data), force=True, stop_before_pixels=True)
                names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
                self.study, self.series, self.sop, self.sop_class = (_uid(self._ds, name) for name in names)
                self.rows, self.columns = int(self._ds.Rows), int(self._ds.Columns)
                # Whether a reference to it names the frame, PS3.3 10.3.
                self.multi_frame = "NumberOfFrames" in self._ds
                self._identity = [_copied(self._ds, name) for name in _PATIENT_AND_STUDY if name in self._ds]
                self._lossy = [_copied(self._ds, name) for name in _LOSSY if name in self._ds]
        except ImageError as error:
            raise Refused(str(error.code)) from error

    def plane(self, frame: int) -> Plane | None:
        """Where a frame lies in the patient; None where the object does not say all of it."""
        with quiet():
            ds, reference = self._ds, str(self._ds.get("FrameOfReferenceUID") or "")
            places = {
                name: functional_group(ds, frame, sequence)
                for name, sequence in (
                    ("ImagePositionPatient", "PlanePositionSequence"),
                    ("ImageOrientationPatient", "PlaneOrientationSequence"),
                    ("PixelSpacing", "PixelMeasuresSequence"),
                )
            }
            # What stands at the top of an object with several frames is of none of them alone.
            single = int(ds.get("NumberOfFrames") or 1) == 1
            found = {
                name: numbers(place if place is not None else ds, name) if place is not None or single else []
                for name, place in places.items()
            }
            measures = places["PixelSpacing"]
            thickness = numbers(measures if measures is not None else ds, "SliceThickness")
        position, orientation, spacing = (tuple(v for v in one if v is not None) for one in found.values())
        if not re.fullmatch(r"[0-9.]{1,64}", reference) or (len(position), len(orientation), len(spacing)) != (3, 6, 2):
            return None
        row, column = np.array(orientation[:3]), np.array(orientation[3:])
        right = abs(row @ row - 1) < _SKEW and abs(column @ column - 1) < _SKEW and abs(row @ column) < _SKEW
        if not right or min(spacing) <= 0:
            return None
        return Plane(reference, position, orientation, spacing, thickness[0] if thickness else None)

    def stand_in(self, plane: Plane | None = None) -> Dataset:
        """A data set for highdicom to derive from, which names the object and says nothing of the patient.

        With a plane it is a slice there, of a class with a place in space; `refer` puts the true one in.
        """
        ds = Dataset()
        for keyword in _TYPE_2:
            setattr(ds, keyword, "")
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = self.study, self.series, self.sop
        ds.SOPClassUID = self.sop_class if plane is None else MRImageStorage
        ds.Rows, ds.Columns = self.rows, self.columns
        if plane is not None:
            ds.FrameOfReferenceUID = plane.frame_of_reference
            ds.ImagePositionPatient, ds.ImageOrientationPatient = (
                _decimals(plane.position),
                _decimals(plane.orientation),
            )
            ds.PixelSpacing, ds.SliceThickness = _decimals(plane.spacing), _decimals([plane.thickness or 1.0])[0]
        return ds

    def refer(self, made: Dataset, frame: int) -> None:
        """Let every reference to the object name its class, and the frame where it has several."""
        for item in _items(made):
            if item.get("ReferencedSOPInstanceUID") == self.sop:
                item.ReferencedSOPClassUID = self.sop_class
                if self.multi_frame:
                    item.ReferencedFrameNumber = frame + 1

    def file(self, made: Dataset) -> None:
        """Give a derived object the patient and the study of its source, as they are there, in UTF-8."""
        made.SpecificCharacterSet = "ISO_IR 192"
        for keyword in _PATIENT_AND_STUDY:
            if keyword in made and keyword not in _TYPE_2:
                delattr(made, keyword)
        for element in self._identity:
            made[element.tag] = element

    def mark_image(self, made: Dataset) -> None:
        """Say of an image derived from its own of which side it is, and what was lost in its pixels before."""
        # PS3.3 C.7.3.1.1.1: empty where it is not known.
        made.Laterality = side if (side := self.value("Laterality")) in ("R", "L") else ""
        for element in self._lossy:
            made[element.tag] = element

    def value(self, keyword: str) -> Any:
        """An attribute's value; None where it has none that can be read."""
        try:
            with quiet(), foreign("pydicom header"):
                return self._ds.get(keyword)
        except ImageError:
            return None

    def local(self, moment: datetime) -> datetime:
        """A moment as clocks show it in the zone that the object's own times are of, PS3.3 C.12.1.1.8; else in UTC."""
        offset = re.fullmatch(r"([+-])([01]\d|2[0-3])([0-5]\d)", str(self.value("TimezoneOffsetFromUTC") or ""))
        if offset is None:
            return moment.astimezone(UTC)
        minutes = int(offset[2]) * 60 + int(offset[3])
        return moment.astimezone(timezone(timedelta(minutes=minutes if offset[1] == "+" else -minutes)))


def _uid(ds: Any, keyword: str) -> str:
    found = str(ds.get(keyword) or "")
    if not re.fullmatch(r"[0-9.]{1,64}", found):
        raise ImageError(ErrorCode.CORRUPT, f"{keyword} is missing, or no UID")
    return found


def _copied(ds: Any, keyword: str) -> DataElement:
    """An attribute as it is, even where its value breaks a rule: it is filed as its source is."""
    element = ds[tag_for_keyword(keyword)]
    value = str(element.value) if element.VR == "PN" and element.VM < 2 else element.value
    return DataElement(element.tag, element.VR, value, validation_mode=config.IGNORE)


def _decimals(values: Any) -> list[str]:
    """Numbers as decimal strings of at most 16 characters, PS3.5 6.2."""
    return [pydicom.valuerep.format_number_as_ds(float(value)) for value in values]


def _items(ds: Dataset) -> Any:
    """Every item of every sequence in a data set, and it itself."""
    yield ds
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield from _items(item)
