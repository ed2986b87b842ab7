"""DICOM objects to pictures: the header, and the frames in any transfer syntax decodable here.

The only module that imports pydicom. Decoders: pydicom with GDCM and pylibjpeg's OpenJPEG and RLE;
libjpeg-turbo (by imagecodecs) for the 12-bit JPEG processes, which none of those reads.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import generate_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
)

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.codestream import codestream_size
from ad_jobs.images.greyscale import greyscale, stored_range
from ad_jobs.images.picture import Numbered, Pixels, check_finite, check_frames, check_size, empty_header, foreign
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.images.sniff import LONG_VRS, has_preamble

with suppress(ImportError):  # without it the syntaxes it reads are reported as unsupported, one by one
    import gdcm

    # GDCM traces to the C-level stderr, where Python's filters do not reach.
    gdcm.Trace.DebugOff()
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()

# Objects that are no image even where they carry Pixel Data (segmentations do), by SOP class, PS3.4 B.5.
_NOT_IMAGES = (
    "1.2.840.10008.1.3.10",  # media directory
    "1.2.840.10008.5.1.4.1.1.4.2",  # MR spectroscopy
    "1.2.840.10008.5.1.4.1.1.9.",  # waveforms
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
    "1.2.840.10008.5.1.4.1.1.66",  # raw data, registrations, fiducials, segmentations
    "1.2.840.10008.5.1.4.1.1.67",  # real world value mapping
    "1.2.840.10008.5.1.4.1.1.88.",  # structured reports, key objects
    "1.2.840.10008.5.1.4.1.1.104.",  # encapsulated documents
    "1.2.840.10008.5.1.4.1.1.481.3",  # RT structure set
    "1.2.840.10008.5.1.4.1.1.481.5",  # RT plan
)
_NOT_IMAGE_MODALITIES = frozenset({"SR", "PR", "KO", "SEG", "ECG", "RTSTRUCT", "RTPLAN", "REG", "FID", "DOC"})

# JPEG processes 2 & 4, 6 & 8 and 10 & 12: twelve bits, which libjpeg-turbo reads and the plug-ins do not.
_TWELVE_BIT_JPEG = frozenset(f"1.2.840.10008.1.2.4.{process}" for process in (51, 53, 55))
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # Float, Double Float, Pixel Data
_LAST_COLUMN = 0x00280301  # Burned In Annotation: elements are in ascending order
_MONTH = re.compile(r"((?:19|20)\d\d)[.\-]?(0[1-9]|1[0-2])")


def decodable(transfer_syntax: str) -> bool:
    """Whether pixel data in this transfer syntax (a UID) can be decoded with the plug-ins installed here."""
    if transfer_syntax in _TWELVE_BIT_JPEG:
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
    ds, ends_cleanly = _read(data, limits)
    with _pydicom("header"):
        syntax = str(ds.file_meta.get("TransferSyntaxUID") or "")
        _require_image(ds, syntax, ends_cleanly)
        rows, columns = _integer(ds, "Rows"), _integer(ds, "Columns")
        frames = _integer(ds, "NumberOfFrames", 1) or 1  # PS3.3 C.7.6.6: absent or empty means a single frame
        samples = _integer(ds, "SamplesPerPixel", 1)
    if frames < 1:
        raise ImageError(ErrorCode.CORRUPT, f"number of frames is {frames}")
    check_size(rows, columns, limits)
    check_frames(frames, limits)
    if samples not in (1, 3):  # PS3.3 C.7.6.3.1.1; 4 was ARGB and CMYK, retired
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"{samples} samples per pixel")
    if not decodable(syntax):
        raise ImageError(ErrorCode.UNSUPPORTED_SYNTAX, f"no decoder for transfer syntax {_uid(syntax)}")
    return DicomPicture(ds, syntax, rows, columns, frames, samples, limits)


class DicomPicture:
    """A DICOM image object; `read` decodes it frame by frame."""

    def __init__(
        self, ds: Any, syntax: str, rows: int, columns: int, frames: int, samples: int, limits: Limits
    ) -> None:
        self.frames = frames
        self._ds = ds
        self._syntax = syntax
        self._size = (rows, columns)
        self._samples = samples
        with _pydicom("header"):
            self.header = _header(ds, syntax)
            if UID(syntax).is_encapsulated:
                self._check_codestreams(limits)
            else:
                self._check_length()

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
        plain_jpeg = self._syntax.endswith(".51") and bits <= 8
        if self._syntax in _TWELVE_BIT_JPEG and not plain_jpeg:
            yield from self._decode_twelve_bit_jpeg(only, bits)
            return
        options = as_pixel_options(self._ds)
        wanted = None if only is None else [only]
        if wanted is None and UID(self._syntax) in (*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes):
            # pydicom mends their sign (PS3.5 A.4.3, A.4.4) in place, which it can only do frame by frame by
            # number.
            wanted = list(range(self.frames))
        # YBR_FULL and YBR_FULL_422 come out as RGB (PS3.3 C.7.6.3.1.2), any planar configuration as
        # interleaved (C.7.6.3.1.3).
        frames = get_decoder(UID(self._syntax)).iter_array(
            self._ds, indices=wanted, raw=False, validate=True, **options
        )
        for array, properties in frames:
            yield array, str(properties["photometric_interpretation"])

    def _decode_twelve_bit_jpeg(self, only: int | None, bits: int) -> Iterator[tuple[npt.NDArray[Any], str]]:
        if self._samples != 1:
            raise ImageError(ErrorCode.UNSUPPORTED_SYNTAX, f"colour JPEG with {bits} bits, {_uid(self._syntax)}")
        for index, code in enumerate(generate_frames(self._ds.PixelData, number_of_frames=self.frames)):
            if only is not None and index != only:
                continue
            stored = imagecodecs.jpeg8_decode(code)
            if self._ds.get("PixelRepresentation") == 1:  # two's complement of Bits Stored, PS3.5 8.1.1
                sign = 1 << (bits - 1)
                stored = (stored.astype(np.int32) ^ sign) - sign
            yield stored, str(self._ds.PhotometricInterpretation)

    def _show(self, stored: npt.NDArray[Any], photometric: str, index: int, policy: PixelPolicy) -> Pixels:
        if stored.shape[:2] != self._size:
            raise ImageError(
                ErrorCode.CORRUPT, f"frame {index} is {stored.shape[0]} x {stored.shape[1]}, not as announced"
            )
        if photometric in ("MONOCHROME1", "MONOCHROME2"):
            return greyscale(stored, self._ds, index, photometric, policy.window)
        if photometric == "PALETTE COLOR":  # PS3.3 C.7.9 and C.7.6.3.1.5
            with _pydicom("palette"):
                colour = apply_color_lut(stored, self._ds)[..., :3]  # a fourth table is alpha, for blending
            full_scale = float(np.iinfo(colour.dtype).max)
        elif photometric == "RGB" and stored.ndim == 3:
            with _pydicom("header"):
                bounds = stored_range(self._ds)
            colour, full_scale = stored, 1.0 if bounds is None else bounds[1]
        else:
            raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"photometric interpretation {_code(photometric)}")
        # PS3.3 C.11.2 is for grey alone: colour goes by its full scale.
        scaled = colour.astype(np.float32) / np.float32(full_scale)
        check_finite(scaled, index)
        return np.clip(scaled, 0.0, 1.0)

    def _check_length(self) -> None:
        """Raise ImageError if native pixel data ends before the last frame (PS3.5 8.1.1, 8.2)."""
        tag = next(tag for tag in _PIXEL_TAGS if tag in self._ds)
        bits = {0x7FE00008: 32, 0x7FE00009: 64}.get(tag) or _integer(self._ds, "BitsAllocated")
        needed_bits = self._size[0] * self._size[1] * self._samples * self.frames * bits
        if self.header["photometric"] == "YBR_FULL_422":  # C.7.6.3.1.2: two pixels share their chrominance
            needed_bits = needed_bits // 3 * 2
        needed, found = (needed_bits + 7) // 8, len(self._ds[tag].value or b"")
        if found < needed:
            raise ImageError(ErrorCode.TRUNCATED, f"{found} of {needed} bytes of pixel data")

    def _check_codestreams(self, limits: Limits) -> None:
        """Raise ImageError if a frame is missing, cut short, or announces another size than the header.

        The size also guards the decoders: they allocate what the code stream says, not what the header says.
        """
        if not self._ds.PixelData:
            raise ImageError(ErrorCode.TRUNCATED, "no bytes of pixel data")
        found = 0
        for code in generate_frames(self._ds.PixelData, number_of_frames=self.frames):
            size = codestream_size(code)
            if size is not None:
                check_size(*size, limits)
                if size != self._size:
                    raise ImageError(ErrorCode.CORRUPT, f"frame {found} is {size[0]} x {size[1]}, not as announced")
                # End of image; inside a code stream the two bytes cannot occur (they are stuffed).
                if b"\xff\xd9" not in code:
                    raise ImageError(ErrorCode.TRUNCATED, f"frame {found} has no end marker")
            found += 1
            if found == self.frames:
                return
        raise ImageError(ErrorCode.TRUNCATED, f"{found} of {self.frames} frames")


def read_header(data: bytes, size: int) -> dict[str, Any]:
    """The DICOM columns of schema.MANIFEST_HEADERS from an object's first bytes; `size` is its full length.

    Raises:
        ImageError: the header cannot be read, or does not end within `data` although the object goes on.
    """
    with _pydicom("header"):
        stream = BytesIO(data)
        ds = pydicom.dcmread(stream, force=True, stop_before_pixels=True)
        # Reading stops at the pixels. Where it ran into the end instead, the columns are only there if what
        # follows the last of them has been met.
        if len(data) < size and stream.tell() >= len(data) and max(ds.keys(), default=0) <= _LAST_COLUMN:
            raise ImageError(ErrorCode.TRUNCATED, f"the header does not end within {len(data)} bytes")
        syntax = str(ds.file_meta.get("TransferSyntaxUID") or "")
        header = _header(ds, syntax)
        shared = (
            "modality",
            "manufacturer",
            "rows",
            "columns",
            "bits",
            "photometric",
            "transfer_syntax",
            "study_month",
        )
        return {
            **{name: header[name] for name in shared},
            "body_part": _text(ds, "BodyPartExamined"),
            "model": _text(ds, "ManufacturerModelName"),
            "frames": (_small(ds, "NumberOfFrames", 2**31 - 1) or 1) if "Rows" in ds else None,
            "sop_class": _text(ds, "SOPClassUID"),
            "burned_in": _text(ds, "BurnedInAnnotation"),
        }


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
    deflated = _check_deflated(data, limits)
    with _pydicom("header"):
        # force: sniffing has made sure that it is DICOM; files without preamble or meta are read as well.
        ds = pydicom.dcmread(BytesIO(data), force=True)
        if not ds.file_meta.get("TransferSyntaxUID"):
            implicit, little = ds.original_encoding
            native = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            pixels = ds.get_item(0x7FE00010) if 0x7FE00010 in ds else None
            if pixels is not None and getattr(pixels, "length", None) == 0xFFFFFFFF:
                raise ImageError(ErrorCode.UNSUPPORTED_SYNTAX, "compressed pixels without a transfer syntax")
            ds.file_meta.TransferSyntaxUID = native
        return ds, deflated or _ends_cleanly(ds, len(data))


def _ends_cleanly(ds: Any, size: int) -> bool:
    """Whether the last element ends with the bytes; pydicom drops an unfinished one with a warning."""
    last = max((ds.get_item(tag) for tag in ds.keys()), key=_start, default=None)  # noqa: SIM118
    if last is None:
        return False
    length = getattr(last, "length", None)
    if length is None or length == 0xFFFFFFFF:  # an undefined length: it was read, so its delimiter was there
        return True
    return bool(_start(last) + length == size)


def _start(element: Any) -> int:
    """Where an element's value starts in the stream."""
    return int(getattr(element, "value_tell", None) or getattr(element, "file_tell", None) or 0)


def _check_deflated(data: bytes, limits: Limits) -> bool:
    """Whether the data set is deflated (PS3.5 A.5); inflates it once, piece by piece, against bombs."""
    meta_end, syntax = _meta(data)
    if syntax != DeflatedExplicitVRLittleEndian:
        return False
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    packed, total = data[meta_end:], 0
    with foreign("deflate"):
        while not inflate.eof:
            piece = inflate.decompress(packed, 1 << 20)
            total += len(piece)
            if total > limits.max_bytes:
                raise ImageError(ErrorCode.TOO_MANY_BYTES, f"inflates beyond max_bytes {limits.max_bytes}")
            packed = inflate.unconsumed_tail
            if not piece and not packed and not inflate.eof:
                raise ImageError(ErrorCode.TRUNCATED, "the deflated data set ends too early")
    return True


def _meta(data: bytes) -> tuple[int, str]:
    """Where the file meta information ends, and the transfer syntax in it."""
    # PS3.10 7.1: group 2, in Explicit VR Little Endian whatever follows.
    offset, syntax = 132 if has_preamble(data) else 0, ""
    while data[offset : offset + 2] == b"\x02\x00" and offset + 12 <= len(data):
        if data[offset + 4 : offset + 6] in LONG_VRS:
            start, length = offset + 12, struct.unpack_from("<L", data, offset + 8)[0]
        else:
            start, length = offset + 8, struct.unpack_from("<H", data, offset + 6)[0]
        if data[offset : offset + 4] == b"\x02\x00\x10\x00":
            syntax = data[start : start + length].decode("ascii", "replace").strip("\x00 ")
        offset = start + length
    return offset, syntax


def _require_image(ds: Any, syntax: str, ends_cleanly: bool) -> None:
    """Raise ImageError unless the object is of an image class and has pixel data."""
    sop_class = str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID") or "")
    modality = str(ds.get("Modality") or "")
    if sop_class.startswith(_NOT_IMAGES) or (not sop_class and modality in _NOT_IMAGE_MODALITIES):
        raise ImageError(ErrorCode.NOT_AN_IMAGE, f"SOP class {_uid(sop_class)}")
    if any(tag in ds for tag in _PIXEL_TAGS):
        return
    if not ends_cleanly:
        raise ImageError(ErrorCode.TRUNCATED, "ends before its pixel data")
    if "Rows" in ds and not decodable(syntax):  # pixels kept elsewhere, by a JPIP syntax
        raise ImageError(ErrorCode.UNSUPPORTED_SYNTAX, f"no decoder for transfer syntax {_uid(syntax)}")
    raise ImageError(ErrorCode.NOT_AN_IMAGE, f"no pixel data, SOP class {_uid(sop_class)}")


def _header(ds: Any, syntax: str) -> dict[str, object]:
    """The columns of schema.HEADER: an allow-list, so that nothing else of a header can reach the table."""
    month = _MONTH.match(_text(ds, "StudyDate") or "")
    return empty_header(
        study_uid=_text(ds, "StudyInstanceUID"),
        series_uid=_text(ds, "SeriesInstanceUID"),
        sop_uid=_text(ds, "SOPInstanceUID"),
        modality=_text(ds, "Modality"),
        manufacturer=_text(ds, "Manufacturer"),
        study_month=f"{month[1]}-{month[2]}" if month else None,
        rows=_small(ds, "Rows", 65535),
        columns=_small(ds, "Columns", 65535),
        bits=_small(ds, "BitsStored", 64),
        photometric=_text(ds, "PhotometricInterpretation"),
        transfer_syntax=syntax or None,
    )


def _text(ds: Any, keyword: str) -> str | None:
    """An attribute as text of at most 64 characters (no UI, LO or CS is longer), None if absent."""
    with suppress(*_UNREADABLE):
        value = ds.get(keyword)
        if value is not None:
            return str(value).strip().strip("\x00")[:64] or None
    return None


def _small(ds: Any, keyword: str, most: int) -> int | None:
    """An attribute as a number of 0 to `most`, None if it is absent or anything else."""
    with suppress(*_UNREADABLE):
        value = ds.get(keyword)
        number = int(value) if value is not None else -1
        return number if 0 <= number <= most else None
    return None


# One attribute of a header that cannot be read leaves its column null: it need not keep the pixels from being
# scored.
_UNREADABLE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    struct.error,
    BytesLengthException,
)


def _integer(ds: Any, keyword: str, default: int | None = None) -> int:
    value = ds.get(keyword)
    if value is None or value == "":
        if default is None:
            raise ImageError(ErrorCode.CORRUPT, f"{keyword} is missing")
        return default
    return int(value)


def _uid(value: str) -> str:
    """A UID for a message; anything that is none (PS3.5 9.1) is not repeated."""
    return value if re.fullmatch(r"[0-9.]{1,64}", value) else "unknown"


def _code(value: str) -> str:
    """A photometric interpretation for a message, if it is one that PS3.3 C.7.6.3.1.2 knows."""
    return value if re.fullmatch(r"(YBR|RGB|HSV|ARGB|CMYK|XYB|PALETTE)[A-Z0-9_ ]{0,16}", value) else "unknown"
