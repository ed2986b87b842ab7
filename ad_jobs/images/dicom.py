"""DICOM objects to pictures: the header, and the frames in any transfer syntax decodable here.

The only module that imports pydicom.
Decoders: pydicom with GDCM and pylibjpeg's OpenJPEG and RLE; libjpeg-turbo (by imagecodecs) for the 12-bit JPEG
processes, which none of those reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import generate_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
)

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import dicom_header, pixel_data
from ad_jobs.images.attributes import integer, photometric_in_message, uid_in_message
from ad_jobs.images.dicom_file import UNDEFINED_LENGTH, check_deflated, ends_cleanly
from ad_jobs.images.greyscale import greyscale
from ad_jobs.images.libraries import foreign
from ad_jobs.images.modality_lut import stored_range
from ad_jobs.images.picture import Numbered, Pixels, check_finite, check_frames, check_size
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.images.sop_class import require_image

# Without GDCM the syntaxes it reads are reported as unsupported, one by one.
with suppress(ImportError):
    import gdcm

    # GDCM traces to the C-level stderr, where Python's filters do not reach.
    gdcm.Trace.DebugOff()
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()

# An attribute that cannot be read leaves its column null: it need not keep the pixels from being scored.
_UNREADABLE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    struct.error,
    BytesLengthException,
)


def decodable(transfer_syntax: str) -> bool:
    """Whether pixel data in this transfer syntax (a UID) can be decoded with the plug-ins installed here."""
    if transfer_syntax in pixel_data.TWELVE_BIT_JPEG:
        return True
    try:
        return bool(get_decoder(UID(transfer_syntax)).is_available)
    except NotImplementedError:
        return False


def open_dicom(data: bytes, limits: Limits) -> DicomPicture:
    """The picture in a DICOM object, checked against the limits but not decoded.

    Raises:
        ImageError: not an image, cut short, beyond a limit, or in a syntax that nothing here decodes.
    """
    ds, whole = _read(data, limits)
    with _pydicom("header"):
        syntax = str(ds.file_meta.get("TransferSyntaxUID") or "")
        known = decodable(syntax)
        require_image(ds, syntax, decodable=known, whole=whole)
        rows, columns = integer(ds, "Rows"), integer(ds, "Columns")
        # PS3.3 C.7.6.6: absent or empty means a single frame.
        frames = integer(ds, "NumberOfFrames", 1) or 1
        samples = integer(ds, "SamplesPerPixel", 1)
    if frames < 1:
        raise ImageError(ErrorCode.CORRUPT, f"number of frames is {frames}")
    check_size(rows, columns, limits)
    check_frames(frames, limits)
    # PS3.3 C.7.6.3.1.1; 4 was ARGB and CMYK, retired.
    if samples not in (1, 3):
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"{samples} samples per pixel")
    if not known:
        raise ImageError(ErrorCode.UNSUPPORTED_SYNTAX, f"no decoder for transfer syntax {uid_in_message(syntax)}")
    return DicomPicture(ds, syntax, (rows, columns), frames, samples, limits)


def read_header(data: bytes, size: int) -> dict[str, Any]:
    """The DICOM columns of schema.MANIFEST_HEADERS from an object's first bytes; `size` is its full length.

    Raises:
        ImageError: the header cannot be read, or does not end within `data` although the object goes on.
    """
    with _pydicom("header"):
        stream = BytesIO(data)
        ds = pydicom.dcmread(stream, force=True, stop_before_pixels=True)
        # Reading stops at the pixels.
        # Where it ran into the end instead, all columns are there only if what follows the last of them was met.
        if len(data) < size and stream.tell() >= len(data) and max(ds.keys(), default=0) <= dicom_header.LAST_TAG:
            raise ImageError(ErrorCode.TRUNCATED, f"the header does not end within {len(data)} bytes")
        syntax = str(ds.file_meta.get("TransferSyntaxUID") or "")
        return dicom_header.manifest_columns(_values(ds, dicom_header.MANIFEST_ATTRIBUTES), syntax)


class DicomPicture:
    """A DICOM image object; `read` decodes it frame by frame."""

    def __init__(self, ds: Any, syntax: str, size: tuple[int, int], frames: int, samples: int, limits: Limits) -> None:
        self.frames = frames
        self.remarks: set[str] = set()
        self._ds = ds
        self._syntax = syntax
        self._size = size
        self._samples = samples
        with _pydicom("header"):
            self.header = dicom_header.header_columns(_values(ds, dicom_header.HEADER_ATTRIBUTES), syntax)
            if not UID(syntax).is_encapsulated:
                pixel_data.check_length(ds, size[0] * size[1] * samples * frames, self.header["photometric"])
            elif not ds.PixelData:
                raise ImageError(ErrorCode.TRUNCATED, "no bytes of pixel data")
            else:
                codes = generate_frames(ds.PixelData, number_of_frames=frames)
                pixel_data.check_codestreams(codes, size, frames, limits)

    def read(self, policy: PixelPolicy, only: int | None = None) -> Numbered:
        """As `Picture.read`."""
        decoded = self._decode(only)
        for index in range(self.frames) if only is None else [only]:
            with _pydicom("pixels"):
                # Frames beyond the announced number are left where they are: too long is no error.
                frame = next(decoded, None)
            if frame is None:
                raise ImageError(ErrorCode.TRUNCATED, f"{index} of {self.frames} frames")
            try:
                shown = self._show(*frame, index, policy)
            except BytesLengthException:
                raise ImageError(ErrorCode.CORRUPT, "pydicom header: BytesLengthException") from None
            yield index, shown

    def _decode(self, only: int | None) -> Iterator[tuple[npt.NDArray[Any], str]]:
        """Yield (stored values, photometric interpretation) of all frames, or of one."""
        bits = int(self._ds.get("BitsStored") or 0)
        plain_jpeg = self._syntax == pixel_data.JPEG_EXTENDED and bits <= 8
        if self._syntax in pixel_data.TWELVE_BIT_JPEG and not plain_jpeg:
            yield from self._decode_twelve_bit_jpeg(only, bits)
            return
        options = as_pixel_options(self._ds)
        wanted = None if only is None else [only]
        if wanted is None and UID(self._syntax) in (*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes):
            # pydicom mends their sign (PS3.5 A.4.3, A.4.4) in place, which it can do only frame by frame by number.
            wanted = list(range(self.frames))
        # YBR_FULL and YBR_FULL_422 come out as RGB (PS3.3 C.7.6.3.1.2), any planar configuration as interleaved
        # (C.7.6.3.1.3).
        decoder = get_decoder(UID(self._syntax))
        for array, properties in decoder.iter_array(self._ds, indices=wanted, raw=False, validate=True, **options):
            yield array, str(properties["photometric_interpretation"])

    def _decode_twelve_bit_jpeg(self, only: int | None, bits: int) -> Iterator[tuple[npt.NDArray[Any], str]]:
        if self._samples != 1:
            detail = f"colour JPEG with {bits} bits, {uid_in_message(self._syntax)}"
            raise ImageError(ErrorCode.UNSUPPORTED_SYNTAX, detail)
        signed = self._ds.get("PixelRepresentation") == 1
        for index, code in enumerate(generate_frames(self._ds.PixelData, number_of_frames=self.frames)):
            if only is None or index == only:
                stored = pixel_data.decode_twelve_bit_jpeg(code, bits, signed=signed)
                yield stored, str(self._ds.PhotometricInterpretation)

    def _show(self, stored: npt.NDArray[Any], photometric: str, index: int, policy: PixelPolicy) -> Pixels:
        if stored.shape[:2] != self._size:
            detail = f"frame {index} is {stored.shape[0]} x {stored.shape[1]}, not as announced"
            raise ImageError(ErrorCode.CORRUPT, detail)
        if photometric in ("MONOCHROME1", "MONOCHROME2"):
            return greyscale(stored, self._ds, index, photometric, policy.window)
        # PS3.3 C.7.9 and C.7.6.3.1.5.
        if photometric == "PALETTE COLOR":
            with _pydicom("palette"):
                # A fourth table is alpha, for blending.
                colour = apply_color_lut(stored, self._ds)[..., :3]
            full_scale = float(np.iinfo(colour.dtype).max)
        elif photometric == "RGB" and stored.ndim == 3:
            with _pydicom("header"):
                bounds = stored_range(self._ds)
            colour, full_scale = stored, 1.0 if bounds is None else bounds[1]
        else:
            detail = f"photometric interpretation {photometric_in_message(photometric)}"
            raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, detail)
        # PS3.3 C.11.2 is for grey alone: colour goes by its full scale.
        scaled = colour.astype(np.float32) / np.float32(full_scale)
        check_finite(scaled, index)
        return np.clip(scaled, 0.0, 1.0)


@contextmanager
def _pydicom(part: str) -> Iterator[None]:
    """As `foreign`, for pydicom, which also has error classes of its own."""
    with foreign(f"pydicom {part}"):
        try:
            yield
        except (InvalidDicomError, BytesLengthException) as error:
            raise ImageError(ErrorCode.CORRUPT, f"pydicom {part}: {type(error).__name__}") from None


def _read(data: bytes, limits: Limits) -> tuple[Any, bool]:
    """The data set, and whether the bytes end where its last element does."""
    deflated = check_deflated(data, limits)
    with _pydicom("header"):
        # force: sniffing has made sure that it is DICOM; files without preamble or meta are read as well.
        ds = pydicom.dcmread(BytesIO(data), force=True)
        if not ds.file_meta.get("TransferSyntaxUID"):
            implicit, little = ds.original_encoding
            native = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            pixels = ds.get_item(0x7FE00010) if 0x7FE00010 in ds else None
            if pixels is not None and getattr(pixels, "length", None) == UNDEFINED_LENGTH:
                raise ImageError(ErrorCode.UNSUPPORTED_SYNTAX, "compressed pixels without a transfer syntax")
            ds.file_meta.TransferSyntaxUID = native
        return ds, deflated or ends_cleanly(ds, len(data))


def _values(ds: Any, keywords: tuple[str, ...]) -> dict[str, Any]:
    """The values of those of the attributes that are there, None where one cannot be read."""
    found: dict[str, Any] = dict.fromkeys(keyword for keyword in keywords if keyword in ds)
    for keyword in found:
        with suppress(*_UNREADABLE):
            found[keyword] = ds.get(keyword)
    return found
