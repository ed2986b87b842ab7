"""DICOM objects to pictures: the header, and the frames in any transfer syntax decodable here.

The only module that imports pydicom, which reads the data set; frames are decoded by `native` and `compressed`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import compressed, dicom_header, manifest_header, representation
from ad_jobs.images.attributes import functional_group, numbers, uid_in_message
from ad_jobs.images.colour import to_rgb
from ad_jobs.images.compressed import StoredFrame
from ad_jobs.images.demographics import DEMOGRAPHIC_ATTRIBUTES, demographic_columns
from ad_jobs.images.dicom_file import UNDEFINED_LENGTH, check_deflated, check_deflated_head, ends_cleanly
from ad_jobs.images.fragments import frame_codes
from ad_jobs.images.greyscale import greyscale
from ad_jobs.images.libraries import foreign
from ad_jobs.images.native import NativePixels
from ad_jobs.images.picture import Numbered, Pixels, Shown, check_finite, check_frames, check_size
from ad_jobs.images.pixel_data import check_codestreams
from ad_jobs.images.pixel_module import MONOCHROME, PALETTE, PixelModule, read_pixel_module
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.images.reduction import factor
from ad_jobs.images.sop_class import require_image
from cluster.counting import counted

# PS3.6 table A-1: those without encapsulation; the last is deflated as a whole.
_NATIVE = frozenset(f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".2", ".1.99"))

# Between the centres of pixels: what is beyond is no distance in a picture of anything.
LEAST_MM, MOST_MM = 1e-6, 1e6

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
    """Whether pixel data in this transfer syntax (a UID) can be decoded."""
    return transfer_syntax in _NATIVE or compressed.decodable(transfer_syntax)


def syntax_name(transfer_syntax: str) -> str | None:
    """The name of a transfer syntax (a UID) in PS3.6 table A-1; None where it has none there."""
    uid = pydicom.uid.UID(transfer_syntax)
    return None if uid.name == transfer_syntax else str(uid.name)


def open_dicom(data: bytes, limits: Limits) -> DicomPicture:
    """The picture in a DICOM object, checked against the limits but not decoded.

    Raises:
        ImageError: not an image, cut short, beyond a limit, in a syntax that nothing here decodes, or with a header
            that contradicts itself so that no reading is safe; it knows the header, as far as that can be read.
    """
    try:
        return _picture(data, limits)
    except ImageError as error:
        raise error.knowing(_header_alone(data)) from error


def _header_alone(data: bytes) -> dict[str, object]:
    """The header of an object that fails; nothing where the header is what cannot be read: the failure says so."""
    with suppress(ImageError), _pydicom("header"):
        check_deflated_head(data)
        # Of one that ends within its pixels, reading them would leave nothing.
        return _header(pydicom.dcmread(BytesIO(data), force=True, stop_before_pixels=True))
    return {}


def _header(ds: Any) -> dict[str, object]:
    syntax = str(ds.file_meta.get("TransferSyntaxUID") or "")
    return dicom_header.header_columns(_values(ds, dicom_header.HEADER_ATTRIBUTES), syntax)


def _picture(data: bytes, limits: Limits) -> DicomPicture:
    ds, whole = _read(data, limits)
    remarks: set[str] = set()
    with _pydicom("header"):
        syntax = str(ds.file_meta.get("TransferSyntaxUID") or "")
        known = decodable(syntax)
        require_image(ds, syntax, decodable=known, whole=whole)
        if not known:
            raise ImageError(ErrorCode.UNSUPPORTED_SYNTAX, f"no decoder for transfer syntax {uid_in_message(syntax)}")
        module = read_pixel_module(ds, remarks, little=syntax != ExplicitVRBigEndian)
    check_size(module.rows, module.columns, limits)
    check_frames(module.frames, limits)
    return DicomPicture(ds, syntax, module, remarks, limits)


def read_header(data: bytes, size: int, *, demographics: bool = False) -> dict[str, Any]:
    """The DICOM columns of schema.MANIFEST_HEADERS from an object's first bytes; `size` is its full length.

    With `demographics` those of schema.DEMOGRAPHICS, too.

    Raises:
        ImageError: the header cannot be read, or does not end within `data` although the object goes on.
    """
    check_deflated_head(data)
    with _pydicom("header"):
        stream = BytesIO(data)
        ds = pydicom.dcmread(stream, force=True, stop_before_pixels=True)
        # Reading stops at the pixels.
        # Where it ran into the end instead, all columns are there only if what follows the last of them was met.
        if len(data) < size and stream.tell() >= len(data) and max(ds.keys(), default=0) <= manifest_header.LAST_TAG:
            raise ImageError(ErrorCode.TRUNCATED, f"the header does not end within {counted(len(data), 'byte')}")
        syntax = str(ds.file_meta.get("TransferSyntaxUID") or "")
        found = manifest_header.manifest_columns(_values(ds, manifest_header.MANIFEST_ATTRIBUTES), syntax)
        if demographics:
            found |= demographic_columns(_values(ds, DEMOGRAPHIC_ATTRIBUTES))
        return found


class DicomPicture:
    """A DICOM image object; `read` decodes it frame by frame."""

    def __init__(self, ds: Any, syntax: str, module: PixelModule, remarks: set[str], limits: Limits) -> None:
        self.frames = module.frames
        self.remarks = remarks
        self._ds = ds
        self._syntax = syntax
        self._module = module
        with _pydicom("header"):
            # The last four are no columns of a score table: a model's acceptance domain and a calibration have them.
            self.header = {
                **_header(ds),
                "body_part": representation.code(_values(ds, ("BodyPartExamined",)), "BodyPartExamined"),
                "model": representation.long_string(_values(ds, ("ManufacturerModelName",)), "ManufacturerModelName"),
                "site": representation.long_string(_values(ds, ("InstitutionName",)), "InstitutionName"),
                "spacing_mm": _spacing_mm(ds),
            }
            if syntax in _NATIVE:
                self._native = NativePixels(ds, module)
            else:
                if module.floating or not ds.PixelData:
                    raise ImageError(ErrorCode.TRUNCATED, "no bytes of pixel data")
                self._codes = frame_codes(ds, module.frames, remarks)
                check_codestreams(self._codes, module.size, module.frames, limits)

    def read(self, policy: PixelPolicy, only: int | None = None) -> Numbered:
        """As `Picture.read`."""
        for index in range(self.frames) if only is None else [only]:
            with _pydicom("pixels"):
                found = self._stored(index, self.reduction(policy))
                yield Shown(index, self._show(found, index, policy), found.grid)

    def reduction(self, policy: PixelPolicy) -> int:
        """As `Picture.reduction`."""
        module = self._module
        # A mean of values is none of a palette's numbers, nor of cells in which something else lies beside the value;
        # and one of padding and of what it borders on is neither (PS3.3 C.7.5.1.1.2).
        values_alone = module.photometric != PALETTE and module.high == module.stored - 1
        if self._syntax in _NATIVE or not values_alone or "PixelPaddingValue" in self._ds:
            return 1
        wanted = factor(policy, *module.size)
        return min(wanted, compressed.most_reduced(self._codes[0])) if wanted > 1 else 1

    def _stored(self, index: int, reduction: int) -> StoredFrame:
        """Stored values of a frame, and what they are."""
        if self._syntax in _NATIVE:
            return StoredFrame(self._native.frame(index), self._module)
        code = self._codes[index]
        return compressed.decode_frame(code, index, self._syntax, self._module, self.remarks, reduction)

    def _show(self, found: StoredFrame, index: int, policy: PixelPolicy) -> Pixels:
        stored, module, grid = found
        if stored.shape[:2] != (module.size if grid is None else grid.size):
            detail = f"frame {index} is {stored.shape[0]} x {stored.shape[1]}, not as announced"
            raise ImageError(ErrorCode.CORRUPT, detail)
        if module.photometric in MONOCHROME:
            return greyscale(stored, self._ds, index, module, policy.window, self.remarks)
        rgb = to_rgb(stored, self._ds, module, self.remarks)
        check_finite(rgb, index)
        return np.clip(rgb, 0.0, 1.0, out=rgb)


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


def _spacing_mm(ds: Any) -> float | None:
    """Between the centres of neighbouring pixels, the larger of two values; None where the object does not say.

    Pixel Spacing is what was calibrated, Imager Pixel Spacing is at the detector's face (PS3.3 10.7.1.3).
    """
    with suppress(*_UNREADABLE):
        # Of enhanced objects (PS3.3 C.7.6.16.2.1).
        measures = functional_group(ds, 0, "PixelMeasuresSequence")
        for place, keyword in ((ds, "PixelSpacing"), (measures, "PixelSpacing"), (ds, "ImagerPixelSpacing")):
            spacing = [] if place is None else numbers(place, keyword)
            if found := [value for value in spacing if value is not None and LEAST_MM <= value <= MOST_MM]:
                return max(found)
    return None


def _values(ds: Any, keywords: tuple[str, ...]) -> dict[str, Any]:
    """The values of those of the attributes that are there, None where one cannot be read."""
    found: dict[str, Any] = dict.fromkeys(keyword for keyword in keywords if keyword in ds)
    for keyword in found:
        with suppress(*_UNREADABLE):
            found[keyword] = ds.get(keyword)
    return found
