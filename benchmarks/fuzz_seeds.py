"""Small images of every kind that the decoders read, made here and seeded: what `benchmarks.fuzz` damages."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import tifffile
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

Array = npt.NDArray[Any]
ROWS, COLUMNS = 48, 56
_Y, _X = np.mgrid[0:ROWS, 0:COLUMNS]
_GRAIN = np.random.default_rng(7).normal(0, 6, _X.shape)
GREY = np.clip(128 + 70 * np.sin(_X / 9) * np.cos(_Y / 13) + _GRAIN, 0, 255).astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 16 + 5
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def seeds() -> dict[str, bytes]:
    """Every kind by its name."""
    return {**_jpeg(), **_png(), **_tiff(), **_dicom()}


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _jpeg() -> dict[str, bytes]:
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    return {
        "grey.jpg": _saved(grey, "JPEG"),
        "colour.jpg": _saved(colour, "JPEG"),
        "progressive.jpg": _saved(colour, "JPEG", progressive=True),
        "cmyk.jpg": _saved(colour.convert("CMYK"), "JPEG"),
        "lossless.jpg": imagecodecs.jpeg8_encode(GREY, lossless=True),
        "twelve.jpg": imagecodecs.jpeg8_encode(DEEP, bitspersample=12),
        "lossless-twelve.jpg": imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=12, predictor=6),
    }


def _png() -> dict[str, bytes]:
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    return {
        "grey.png": _saved(grey, "PNG"),
        "bits.png": _saved(grey.convert("1"), "PNG"),
        "palette.png": _saved(colour.quantize(16), "PNG", bits=4, transparency=3),
        "alpha.png": _saved(Image.merge("RGBA", [*colour.split(), grey]), "PNG"),
        "deep.png": imagecodecs.png_encode(DEEP * 16),
        "deep-colour.png": imagecodecs.png_encode(COLOUR.astype(np.uint16) * 257),
    }


def _tiff() -> dict[str, bytes]:
    forms: dict[str, tuple[Array, dict[str, Any]]] = {
        "plain": (GREY, {}),
        "deep-tiled": (DEEP, {"tile": (16, 32)}),
        "float": (GREY / np.float32(255), {}),
        "big": (DEEP, {"bigtiff": True, "byteorder": ">"}),
        "stack": (np.stack([GREY] * 4), {"metadata": {"axes": "ZYX"}}),
        "pages": (np.stack([GREY] * 3), {"metadata": None}),
        "imagej": (np.stack([DEEP] * 3), {"imagej": True}),
        "palette": (GREY >> 4, {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
        "planar": (np.moveaxis(COLOUR, -1, 0).copy(), {"photometric": "rgb", "planarconfig": "separate"}),
        "predictor": (DEEP, {"compression": "zlib", "predictor": True}),
    }
    packings = ("lzw", "packbits", "zstd", "lzma", "jpeg", "jpeg2000", "jpegxl", "png", "webp", "lerc", "jpegxr")
    for packing in packings:
        pixels = COLOUR if packing in ("jpeg", "webp", "png") else GREY
        forms[packing] = (pixels, {"compression": packing, "rowsperstrip": 16})
    found = {}
    for name, (pixels, options) in forms.items():
        stream = BytesIO()
        colour = pixels.ndim == 3 and pixels.shape[-1] == 3
        options = {"photometric": "rgb" if colour else "minisblack", **options}
        tifffile.imwrite(stream, pixels, **options)
        found[f"{name}.tif"] = stream.getvalue()
    return found


def _dicom() -> dict[str, bytes]:
    j2k = {"codecformat": "j2k", "reversible": True, "level": 0}
    jp2 = b"\0\0\0\x0cjP  \r\n\x87\n"
    stream = imagecodecs.jpeg2k_encode(DEEP, **j2k)
    encapsulated: dict[str, tuple[bytes, Array, str]] = {
        "baseline": (imagecodecs.jpeg8_encode(GREY), GREY, uid.JPEGBaseline8Bit),
        "baseline-colour": (imagecodecs.jpeg8_encode(COLOUR), COLOUR, uid.JPEGBaseline8Bit),
        "extended": (imagecodecs.jpeg8_encode(DEEP, bitspersample=12), DEEP, uid.JPEGExtended12Bit),
        "lossless": (imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=12), DEEP, uid.JPEGLosslessSV1),
        "jpeg-ls": (imagecodecs.jpegls_encode(DEEP), DEEP, uid.JPEGLSLossless),
        "jpeg-2000": (stream, DEEP, uid.JPEG2000Lossless),
        "jp2": (jp2 + (len(stream) + 8).to_bytes(4) + b"jp2c" + stream, DEEP, uid.JPEG2000Lossless),
        "htj2k": (imagecodecs.htj2k_encode(DEEP, reversible=True), DEEP, uid.HTJ2KLossless),
    }
    found = {}
    for name, (code, pixels, syntax) in encapsulated.items():
        ds = _dataset(pixels, syntax)
        if name == "baseline-colour":
            ds.PhotometricInterpretation = "YBR_FULL"
        ds.PixelData = encapsulate([code])
        ds["PixelData"].VR = "OB"
        found[f"{name}.dcm"] = _written(ds)
    rle = _dataset(np.stack([DEEP] * 3), uid.ExplicitVRLittleEndian)
    rle.compress(uid.RLELossless)
    found["rle.dcm"] = _written(rle)
    for name, syntax in (
        ("explicit", uid.ExplicitVRLittleEndian),
        ("implicit", uid.ImplicitVRLittleEndian),
        ("deflated", uid.DeflatedExplicitVRLittleEndian),
    ):
        ds = _dataset(np.stack([DEEP] * 2), syntax)
        ds.RescaleSlope, ds.RescaleIntercept, ds.WindowCenter, ds.WindowWidth = "2", "-1024", "300", "900"
        ds.PixelPaddingValue = 0
        found[f"{name}.dcm"] = _written(ds)
    found["signed.dcm"] = _written(_dataset(DEEP.astype(np.int16) - 2000, uid.ExplicitVRLittleEndian))
    found["rgb.dcm"] = _written(_dataset(COLOUR, uid.ExplicitVRLittleEndian))
    tables = _dataset(GREY, uid.ExplicitVRLittleEndian)
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        item = Dataset()
        item.LUTDescriptor = [256, 0, 16]
        item.add_new(0x00283006, "OW", np.arange(0, 65536, 256, dtype=np.uint16).tobytes())
        item.ModalityLUTType = "US"
        setattr(tables, keyword, Sequence([item]))
    found["tables.dcm"] = _written(tables)
    return found


def _dataset(pixels: Array, syntax: str) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    ds.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    colour = pixels.shape[-1] == 3
    frames = pixels.ndim == 3 and not colour
    ds.Rows, ds.Columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    if frames:
        ds.NumberOfFrames = len(pixels)
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = 12 if pixels.dtype == np.uint16 else ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    return ds


def _written(ds: Dataset) -> bytes:
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    stream = BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()
