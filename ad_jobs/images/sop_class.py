"""Whether a DICOM object is an image at all, by its SOP class (PS3.4 B.5) and its pixel data."""

from __future__ import annotations

from typing import Any

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.attributes import uid_in_message
from ad_jobs.images.pixel_module import PIXEL_TAGS

# Objects that are no image even where they carry Pixel Data (segmentations do): how their SOP class begins.
_NOT_IMAGES = {
    "1.2.840.10008.1.3.10": "media directory",
    "1.2.840.10008.5.1.4.1.1.4.2": "MR spectroscopy",
    "1.2.840.10008.5.1.4.1.1.9.": "waveforms",
    "1.2.840.10008.5.1.4.1.1.11.": "presentation states",
    "1.2.840.10008.5.1.4.1.1.66": "raw data, registrations, fiducials, segmentations",
    "1.2.840.10008.5.1.4.1.1.67": "real world value mapping",
    "1.2.840.10008.5.1.4.1.1.88.": "structured reports, key objects",
    "1.2.840.10008.5.1.4.1.1.104.": "encapsulated documents",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT structure set",
    "1.2.840.10008.5.1.4.1.1.481.5": "RT plan",
}
_NOT_IMAGE_MODALITIES = frozenset({"SR", "PR", "KO", "SEG", "ECG", "RTSTRUCT", "RTPLAN", "REG", "FID", "DOC"})


def is_no_image(sop_class: str, modality: str) -> bool:
    """Whether objects of a SOP class (a UID) are no images, whatever they carry; by the modality where it is empty."""
    return sop_class.startswith(tuple(_NOT_IMAGES)) or (not sop_class and modality in _NOT_IMAGE_MODALITIES)


def require_image(ds: Any, syntax: str, *, decodable: bool, whole: bool) -> None:
    """Raise ImageError unless the object is of an image class and has pixel data.

    Args:
        ds: the object's data set.
        syntax: its transfer syntax.
        decodable: whether pixels in this syntax can be decoded here.
        whole: whether the object's bytes end where its last element does.
    """
    sop_class = str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID") or "")
    modality = str(ds.get("Modality") or "")
    if is_no_image(sop_class, modality):
        raise ImageError(ErrorCode.NOT_AN_IMAGE, f"SOP class {uid_in_message(sop_class)}")
    if any(tag in ds for tag in PIXEL_TAGS):
        return
    if not whole:
        raise ImageError(ErrorCode.TRUNCATED, "ends before its pixel data")
    # Pixels kept elsewhere, by a JPIP syntax.
    if "Rows" in ds and not decodable:
        raise ImageError(ErrorCode.UNSUPPORTED_SYNTAX, f"no decoder for transfer syntax {uid_in_message(syntax)}")
    raise ImageError(ErrorCode.NOT_AN_IMAGE, f"no pixel data, SOP class {uid_in_message(sop_class)}")
