"""DICOM files made in code, with exaggerated tags: non-square, signed, twelve bits in sixteen, frames."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from ad_jobs.errors import ImageError
from ad_jobs.images.decode import decode
from ad_jobs.images.policy import Limits, PixelPolicy, Window

# Never square: a swap of the two must show.
ROWS, COLUMNS = 12, 20
LIMITS = Limits()
# Stored frames count in steps of 1/65535: half a step is what rounding may take.
HALF_STEP = 0.5 / 65535 + 1e-9
SYNTAXES = {"rle": RLELossless, "jpeg2000": JPEG2000Lossless, "jpeg-ls": JPEGLSLossless}
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


def compressed(ds: Dataset, name: str) -> bytes:
    """The same file in the compressed syntax `name` of SYNTAXES, losslessly."""
    if name == "rle":
        ds.compress(RLELossless, generate_instance_uid=False)
        return encode(ds)
    frames = np.frombuffer(ds.PixelData, "<i2" if ds.PixelRepresentation else "<u2")
    frames = frames.reshape(-1, ds.Rows, ds.Columns)
    if name == "jpeg2000":
        codes = [imagecodecs.jpeg2k_encode(f, 0, codecformat="j2k", reversible=True) for f in frames]
    else:
        # JPEG-LS knows no sign: the bits as they are.
        codes = [imagecodecs.jpegls_encode(f.view("<u2"), 0) for f in frames]
    ds.PixelData = encapsulate([bytes(code) for code in codes])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = SYNTAXES[name]
    return encode(ds)


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
