"""DICOM objects as bytes: images in many transfer syntaxes, and objects without an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    BasicTextSRStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    MRImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    generate_uid,
)

from ad_jobs.phantom.codecs import BITS_STORED, ENCAPSULATED, JPEG_2000_LOSSLESS, compress
from ad_jobs.phantom.identifiers import Person, Visit
from ad_jobs.phantom.scanners import Acquired, Scanner

_PRIVATE_GROUP = 0x0011
_NON_IMAGES = {
    "SR": BasicTextSRStorage,
    "PR": GrayscaleSoftcopyPresentationStateStorage,
    "KO": KeyObjectSelectionDocumentStorage,
}
NON_IMAGE_MODALITIES = tuple(_NON_IMAGES)


@dataclass(frozen=True)
class Study:
    """What all objects of one study have in common; `key` makes its UIDs."""

    key: str
    person: Person
    visit: Visit
    scanner: Scanner


def image_bytes(study: Study, number: int, frames: Sequence[Acquired], syntax: str) -> bytes:
    """A DICOM file with the given frames, single or multi-frame, in transfer syntax `syntax`."""
    several = len(frames) > 1
    sop_class = MultiFrameGrayscaleWordSecondaryCaptureImageStorage if several else MRImageStorage
    ds = _image(study, number, sop_class, frames[0])
    ds.RescaleSlope, ds.RescaleIntercept = f"{study.scanner.slope:g}", f"{study.scanner.intercept:g}"
    ds.WindowCenter = [f"{centre:g}" for centre, _ in frames[0].windows]
    ds.WindowWidth = [f"{width:g}" for _, width in frames[0].windows]
    if several:
        ds.NumberOfFrames = len(frames)
    if syntax in ENCAPSULATED:
        ds.PixelData = encapsulate([compress(frame.stored, syntax) for frame in frames])
        # PS3.5 A.4: encapsulated pixel data is OB.
        ds["PixelData"].VR = "OB"
    else:
        order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
        ds.PixelData = np.stack([frame.stored for frame in frames]).astype(order).tobytes()
        ds["PixelData"].VR = "OW"
    return _file(ds, syntax)


def undecodable_bytes(study: Study, number: int, like: Acquired) -> bytes:
    """A JPEG 2000 object of the size of `like` whose codestream is not one."""
    ds = _image(study, number, MRImageStorage, like)
    ds.PixelData = encapsulate([like.stored.tobytes()])
    ds["PixelData"].VR = "OB"
    return _file(ds, JPEG_2000_LOSSLESS)


def non_image_bytes(study: Study, number: int, modality: str) -> bytes:
    """A report, presentation state or key object selection that speaks of the patient in free text."""
    ds = _common(study, number, modality, _NON_IMAGES[modality])
    ds.Manufacturer = study.scanner.manufacturer
    if modality == "PR":
        ds.ContentLabel = "ANNOTATED"
        ds.ContentDescription = study.person.attributes["PatientComments"]
    else:
        text = Dataset()
        text.RelationshipType = "CONTAINS"
        text.ValueType = "TEXT"
        text.TextValue = f"Patient {study.person.attributes['PatientName']}: nothing found."
        ds.ValueType = "CONTAINER"
        ds.ContentSequence = DicomSequence([text])
    return _file(ds, str(ExplicitVRLittleEndian))


def malformed_bytes(study: Study, number: int, frame: Acquired) -> bytes:
    """An image whose photometric interpretation is the patient's name: a decoder's complaint must not quote it."""
    whole = image_bytes(study, number, [frame], str(ExplicitVRLittleEndian))
    name = study.person.attributes["PatientName"].partition("^")[0].encode()
    # Padded to an even length.
    grey = f"{study.scanner.photometric} ".encode()
    assert grey in whole
    return whole.replace(grey, name[: len(grey)].ljust(len(grey)), 1)


def _image(study: Study, number: int, sop_class: str, frame: Acquired) -> Dataset:
    """The attributes of an image but for its pixel data (PS3.3 C.7.6.3)."""
    ds = _common(study, number, "MR", sop_class)
    ds.Manufacturer = study.scanner.manufacturer
    ds.ManufacturerModelName = study.scanner.model
    ds.BodyPartExamined = "HEAD"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = study.scanner.photometric
    ds.Rows, ds.Columns = frame.stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, BITS_STORED, BITS_STORED - 1
    ds.PixelRepresentation = 0
    return ds


def _common(study: Study, number: int, modality: str, sop_class: str) -> Dataset:
    """The patient, study, series and SOP attributes of an object, every planted identifier among them."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    for keyword, value in {**study.person.attributes, **study.visit.attributes}.items():
        setattr(ds, keyword, value)
    ds.InstitutionName = study.scanner.institution
    ds.Modality = modality
    ds.SOPClassUID = sop_class
    ds.StudyInstanceUID = _uid(study.key)
    ds.SeriesInstanceUID = _uid(study.key, modality)
    ds.SOPInstanceUID = _uid(study.key, modality, str(number))
    ds.SeriesNumber = 1
    ds.InstanceNumber = number
    block = ds.private_block(_PRIVATE_GROUP, "RETROSCAN PHANTOM", create=True)
    for offset, value in enumerate(study.visit.private):
        block.add_new(offset, "LO", value)
    return ds


def _uid(*parts: str) -> str:
    return str(generate_uid(entropy_srcs=list(parts)))


def _file(ds: Dataset, syntax: str) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    # Set here, since pydicom's own would change the bytes with its version.
    meta.ImplementationClassUID = _uid("retroscan phantom")
    meta.ImplementationVersionName = "RETROSCAN"
    ds.file_meta = meta
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()
