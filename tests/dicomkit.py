"""DICOM files made in code, with exaggerated tags: non-square, signed, twelve bits in sixteen, frames."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ad_jobs.errors import ImageError
from ad_jobs.images.decode import decode
from ad_jobs.images.policy import Limits, PixelPolicy, Window

# Never square: a swap of the two must show.
ROWS, COLUMNS = 12, 20
LIMITS = Limits()
# Stored frames count in steps of 1/65535: half a step is what rounding may take.
HALF_STEP = 0.5 / 65535 + 1e-9
SYNTAXES = {
    "rle": RLELossless,
    "jpeg-lossless": JPEGLosslessSV1,
    "jpeg-ls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
}
NATIVE = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
# Of 8 or 12 bits, at the best quality.
LOSSY = {"jpeg": JPEGExtended12Bit}
FORMS = {**NATIVE, **SYNTAXES, **LOSSY}
SECRETS = {
    "PatientName": "Doe^Jane",
    "PatientID": "MRN-778899",
    "PatientBirthDate": "19700102",
    "AccessionNumber": "ACC-4711",
    "StudyDescription": "Secret story",
    "InstitutionName": "Hidden Clinic",
}


def dataset(pixels: npt.NDArray[Any] | None, *, bits: int | None = None, **attributes: Any) -> Dataset:
    """A data set of `pixels` [rows, columns], [frames, rows, columns] or [rows, columns, 3]; None removes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.2"
    ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.3"
    ds.Modality, ds.Manufacturer, ds.StudyDate = "CT", "Maker", "20230517"
    for keyword, value in SECRETS.items():
        setattr(ds, keyword, value)
    if pixels is not None:
        colour = pixels.ndim == 3 and pixels.shape[2] == 3
        ds.Rows, ds.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:3]
        if pixels.ndim == 3 and not colour:
            ds.NumberOfFrames = len(pixels)
        ds.SamplesPerPixel = 3 if colour else 1
        ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            ds.PlanarConfiguration = 0
        ds.BitsAllocated = pixels.dtype.itemsize * 8
        ds.BitsStored = bits or ds.BitsAllocated
        ds.HighBit = ds.BitsStored - 1
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
        body = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
        ds.PixelData = body + b"\x00" * (len(body) % 2)
        ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def encode(ds: Dataset, **options: Any) -> bytes:
    """The bytes of a DICOM file."""
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", UID("1.2.3"))
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", UID("1.2.3.4"))
    stream = BytesIO()
    pydicom.dcmwrite(stream, ds, **{"enforce_file_format": True, **options})
    return stream.getvalue()


def dicom(pixels: npt.NDArray[Any] | None, **attributes: Any) -> bytes:
    """A DICOM file in Explicit VR Little Endian."""
    return encode(dataset(pixels, **attributes))


def compressed(ds: Dataset, name: str, precision: int | None = None) -> bytes:
    """The same file in the compressed syntax `name` of SYNTAXES, losslessly.

    A code stream has `precision` bits, by default Bits Stored; JPEG-LS has all of a cell's.
    """
    encapsulated(ds, codes(ds, name, precision))
    ds.file_meta.TransferSyntaxUID = FORMS[name]
    return encode(ds)


def codes(ds: Dataset, name: str, precision: int | None = None) -> list[bytes]:
    """The frames of a native data set as code streams."""
    bits = precision or ds.BitsStored
    size = ds.BitsAllocated // 8
    samples = (ds.SamplesPerPixel,) if ds.SamplesPerPixel > 1 else ()
    count = int(ds.get("NumberOfFrames", 1))
    cells = np.frombuffer(ds.PixelData, f"<u{size}", count * ds.Rows * ds.Columns * ds.SamplesPerPixel)
    frames = cells.reshape(count, ds.Rows, ds.Columns, *samples)
    if name == "rle":
        return [_rle(f.reshape(ds.Rows * ds.Columns, -1)) for f in frames]
    if name == "jpeg-ls":
        # JPEG-LS knows no sign: the bits as they are.
        return [bytes(imagecodecs.jpegls_encode(f, 0)) for f in frames]
    frames = frames & frames.dtype.type((1 << bits) - 1)
    if name in ("jpeg", "jpeg-lossless"):
        # Nothing is converted.
        how: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "RGB"} if samples else {}
        how |= {"level": 100} if name == "jpeg" else {"lossless": True, "predictor": 1}
        streams = [bytes(imagecodecs.jpeg8_encode(f, bitspersample=bits, **how)) for f in frames]
        if samples and ds.PhotometricInterpretation != "RGB":
            streams = [_renamed(stream) for stream in streams]
        return streams
    if ds.PixelRepresentation:
        frames = (frames << (8 * size - bits)).view(f"i{size}") >> (8 * size - bits)
    j2k = {"codecformat": "j2k", "reversible": True, "bitspersample": bits, "mct": False}
    return [bytes(imagecodecs.jpeg2k_encode(f, 0, **j2k)) for f in frames]


def _renamed(code: bytes) -> bytes:
    """A JPEG whose components are not called R, G and B, as they would be for colour that is no RGB."""
    for separators in (b"\x11\x00", b"\x00"):
        code = code.replace(separators.join([b"R", b"G", b"B"]), separators.join([b"\1", b"\2", b"\3"]))
    return code


def _rle(cells: npt.NDArray[Any]) -> bytes:
    """Cells [pixels, samples] in RLE: a segment for each byte of each sample, the highest first."""
    size = cells.dtype.itemsize
    planes = np.ascontiguousarray(cells).view(np.uint8).reshape(len(cells), -1, size)[..., ::-1]
    segments = [imagecodecs.packbits_encode(np.ascontiguousarray(plane)) for plane in planes.reshape(len(cells), -1).T]
    even = [segment + bytes(len(segment) % 2) for segment in segments]
    offsets = 64 + np.cumsum([0, *map(len, even[:-1])])
    return struct.pack("<L15L", len(even), *offsets, *[0] * (15 - len(even))) + b"".join(even)


def encapsulated(ds: Dataset, frames: list[bytes], *, table: bool = True) -> None:
    """Put code streams in place of native pixel data, a fragment each."""
    ds.PixelData = encapsulate(frames, has_bot=table)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


def in_form(ds: Dataset, form: str, precision: int | None = None) -> bytes:
    """A file of a native data set in one of FORMS."""
    if form not in NATIVE:
        return compressed(ds, form, precision)
    ds.file_meta.TransferSyntaxUID = FORMS[form]
    if form == "big endian":
        swap_words(ds)
    return encode(ds)


def swap_words(ds: Dataset) -> None:
    """A data set made big endian in every sequence: pydicom writes those of OW as they are."""
    # As they are: some are raw, and no values of their representation.
    for element in [ds.get_item(tag) for tag in list(ds.keys())]:
        if element.VR == "SQ":
            for inner in element.value:
                swap_words(inner)
        elif element.VR == "OW":
            element.value = np.frombuffer(element.value, "<u2").astype(">u2").tobytes()


def raw(ds: Dataset, keyword: str, vr: str, value: bytes) -> Dataset:
    """The data set with an attribute of these bytes, valid or not."""
    tag = Tag(keyword)
    ds[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return ds


def item(**attributes: Any) -> Dataset:
    """A sequence item."""
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def lut(first: int, entries: list[int], bits: int) -> Sequence:
    """A Modality or VOI LUT Sequence."""
    made = item(LUTDescriptor=[len(entries), first, bits], LUTData=entries, ModalityLUTType="US")
    made["LUTDescriptor"].VR = "US"
    made["LUTData"].VR = "US"
    return Sequence([made])


def ramp(levels: int = ROWS * COLUMNS, dtype: str = "<u2") -> npt.NDArray[Any]:
    """0, 1, 2, ... modulo `levels`, [ROWS, COLUMNS]."""
    return (np.arange(ROWS * COLUMNS) % levels).astype(dtype).reshape(ROWS, COLUMNS)


def policy(window: Window = "dicom", channels: int = 1) -> PixelPolicy:
    """A policy under which a picture of ROWS and COLUMNS keeps its size."""
    return PixelPolicy(channels=channels, height_px=ROWS, width_px=COLUMNS, window=window)


def grey(data: bytes, window: Window = "dicom", frame: int = 0) -> npt.NDArray[Any]:
    """A frame's values in [0, 1] at its own size."""
    return decode(data, policy(window), LIMITS).frames[frame].pixels[0] / 65535


def refused(data: bytes, limits: Limits = LIMITS) -> ImageError:
    """Why the object cannot be scored."""
    with pytest.raises(ImageError) as caught:
        decode(data, policy(), limits)
    return caught.value
