"""The images of a study that reviewers found abnormal as a Key Object Selection (PS3.3 A.35.4, PS3.16 TID 2010)."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.sr.codedict import codes

from ad_jobs.exporting.dicom_header import Header
from ad_jobs.exporting.dicom_made import Maker
from ad_jobs.exporting.dicom_sr import observer
from ad_jobs.exporting.originals import Row


class Noted(NamedTuple):
    """A frame that reviewers found abnormal."""

    row: Row
    header: Header


def key_objects(maker: Maker, frames: list[Noted], number: int) -> tuple[str, bytes]:
    """(SOP Instance UID, bytes) of the selection of frames of one study, the `number`-th of its series.

    Frames of one object are one reference (PS3.3 10.3).
    """
    first = frames[0].header
    noted_at: datetime = max(noted.row["noted_at"] for noted in frames)
    of_object: dict[str, list[int]] = {}
    headers = {header.sop: header for _, header in frames}
    for row, header in frames:
        of_object.setdefault(header.sop, []).append(int(row["frame"]) + 1)
    uid = maker.uid(*of_object.items(), noted_at.isoformat())
    sources = {sop: headers[sop].stand_in() for sop in of_object}
    content = KeyObjectSelection(
        document_title=codes.DCM.OfInterest,
        referenced_objects=list(sources.values()),
        observer_device_context=observer(maker, None),
        description=f"Frames that reviewers accepted or supplemented; by {maker.of_whom(None)}",
    )
    for item in content[0].ContentSequence:
        for reference in item.get("ReferencedSOPSequence", []):
            if headers[sop := reference.ReferencedSOPInstanceUID].multi_frame:
                reference.ReferencedFrameNumber = of_object[sop]
    made = KeyObjectSelectionDocument(
        evidence=list(sources.values()),
        content=content,
        sop_instance_uid=uid,
        instance_number=number,
        **maker.series(first, None),
    )
    return uid, maker.stamped(made, first, noted_at)
