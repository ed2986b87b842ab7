"""What of a DICOM header may reach a manifest: an allow-list of attributes, and the columns made of them.

Each value is checked against its value representation (`representation`), and left out where it breaks its rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ad_jobs.images import representation as vr
from ad_jobs.images.dicom_header import HEADER_ATTRIBUTES, header_columns
from ad_jobs.images.transfer_syntax import is_compressed, is_lossy

# Nothing else of a header is read for a manifest: no name, id, birth date, accession number or free text.
MANIFEST_ATTRIBUTES = (
    *HEADER_ATTRIBUTES,
    "AcquisitionNumber",
    "BodyPartExamined",
    "BurnedInAnnotation",
    "ImageLaterality",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "InstanceNumber",
    "InstitutionName",
    "Laterality",
    "LossyImageCompression",
    "ManufacturerModelName",
    "NumberOfFrames",
    "PixelSpacing",
    "SOPClassUID",
    "SliceThickness",
    "ViewPosition",
)
# Elements are in ascending order: behind Lossy Image Compression no more of these columns follow.
LAST_TAG = 0x00282110

# Checked against fixed lists, or numbers, wherever they are shown.
_SHARED = ("rows", "columns", "bits", "photometric", "study_month")
# PS3.3 C.7.6.1.1 and C.7.3.1: Image Laterality, and Laterality of the series, which knows R and L alone.
_SIDES = ("R", "L", "U", "B")


def manifest_columns(values: Mapping[str, Any], syntax: str) -> dict[str, object]:
    """The columns of schema.MANIFEST_HEADERS from the values of MANIFEST_ATTRIBUTES that an object has.

    Of enhanced multi-frame objects spacing and position are null: they stand in functional groups, frame by frame.
    """
    header = header_columns(values, syntax)
    coded = vr.uid(syntax)
    spacing = vr.decimals(values, "PixelSpacing", 2)
    thickness = vr.decimals(values, "SliceThickness", 1)
    return {
        **{name: header[name] for name in _SHARED},
        "study_uid": vr.uid(values.get("StudyInstanceUID")),
        "series_uid": vr.uid(values.get("SeriesInstanceUID")),
        "sop_uid": vr.uid(values.get("SOPInstanceUID")),
        "modality": vr.code(values, "Modality"),
        "body_part": vr.code(values, "BodyPartExamined"),
        "view_position": vr.code(values, "ViewPosition"),
        "laterality": vr.one_of(values, "ImageLaterality", _SIDES) or vr.one_of(values, "Laterality", _SIDES[:2]),
        "manufacturer": vr.long_string(values, "Manufacturer"),
        "model": vr.long_string(values, "ManufacturerModelName"),
        # PS3.3 C.7.5.1: where the equipment stands. It may help to identify people, and is hidden as UIDs are.
        "site": vr.long_string(values, "InstitutionName"),
        "image_type": vr.codes(values, "ImageType"),
        "acquisition_number": vr.integer(values, "AcquisitionNumber"),
        "instance_number": vr.integer(values, "InstanceNumber"),
        # PS3.3 C.7.6.6: absent means a single frame; what has no rows has no frames.
        "frames": _frames(values) if "Rows" in values else None,
        # PS3.3 10.7.1.1: between rows, then between columns; none is no distance.
        "pixel_spacing": spacing if spacing and min(spacing) > 0 else None,
        "slice_thickness": thickness[0] if thickness else None,
        # PS3.3 C.7.6.2.1.1.
        "image_position": vr.decimals(values, "ImagePositionPatient", 3),
        "image_orientation": vr.decimals(values, "ImageOrientationPatient", 6),
        "transfer_syntax": coded,
        "compressed": is_compressed(coded),
        "lossy": is_lossy(coded, vr.one_of(values, "LossyImageCompression", ("00", "01"))),
        "sop_class": vr.uid(values.get("SOPClassUID")),
        "burned_in": vr.one_of(values, "BurnedInAnnotation", ("YES", "NO")),
    }


def _frames(values: Mapping[str, Any]) -> int:
    found = vr.integer(values, "NumberOfFrames")
    return found if found is not None and found > 0 else 1
