"""JPEG of 8 and 12 bits to pictures, by libjpeg.

torchvision gives the same pixels no faster, and its import costs a decoding process seconds: benchmarks/decode.py.
"""

from __future__ import annotations

from functools import cached_property
from io import BytesIO
from typing import Any

import numpy.typing as npt
from PIL.JpegImagePlugin import JpegImageFile

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import libjpeg
from ad_jobs.images.codestream import JpegFrame, jpeg_frame
from ad_jobs.images.geometry import Grid
from ad_jobs.images.picture import Numbered, Picture, Shown, check_size, empty_header
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.images.raster import RasterPicture, eight_bits, exif_orientation, lies_across, pillow, with_channels
from ad_jobs.images.reduction import factor
from ad_jobs.images.remarks import Remark

# By the number of components.
_PHOTOMETRIC = {1: "MONOCHROME2", 3: "RGB", 4: "CMYK"}


class JpegPicture(RasterPicture):
    """A JPEG, decoded at a half, a quarter or an eighth of its size where the policy lets it be."""

    def __init__(self, data: bytes, frame: JpegFrame) -> None:
        super().__init__(empty_header(**_known(frame)), frame.bits, self._whole)
        self._data = data
        self._frame = frame

    def reduction(self, policy: PixelPolicy) -> int:
        """As `Picture.reduction`."""
        if policy.decode == "full" or not libjpeg.reducible(self._frame):
            return 1
        rows, columns = self._frame.rows, self._frame.columns
        displayed = (columns, rows) if lies_across(self._orientation) else (rows, columns)
        return min(factor(policy, *displayed), libjpeg.MOST_REDUCED)

    def read(self, policy: PixelPolicy, only: int | None = None) -> Numbered:
        """As `Picture.read`; there is only frame 0."""
        reduction = self.reduction(policy)
        if reduction > 1:
            if found := self._reduced(reduction):
                samples, grid = found
                yield Shown(0, self._show(with_channels(samples), self._orientation, policy), grid)
                return
            self.remarks.add(Remark.DECODED_WHOLE)
        yield from super().read(policy, only)

    def _reduced(self, reduction: int) -> tuple[npt.NDArray[Any], Grid] | None:
        # Turned round, a picture that its last blocks reach beyond would begin within one.
        if self._orientation != 1 and (self._frame.rows % reduction or self._frame.columns % reduction):
            return None
        found = libjpeg.decode_reduced(self._data, self._frame, reduction)
        if found is None or not lies_across(self._orientation):
            return found
        return found[0], found[1].transposed()

    def _whole(self) -> tuple[npt.NDArray[Any], int]:
        orientation = self._orientation
        # CMYK and its inversions.
        if self._frame.components == 4:
            self.remarks |= libjpeg.examine(self._data)
            with pillow():
                return eight_bits(self._opened()), orientation
        found, remarks = libjpeg.decode(self._data, self._frame)
        self.remarks |= remarks
        return with_channels(found), orientation

    @cached_property
    def _orientation(self) -> int:
        # Pillow opens no other depth.
        if self._frame.bits != 8:
            return 1
        with pillow():
            return exif_orientation(self._opened())

    def _opened(self) -> JpegImageFile:
        return JpegImageFile(BytesIO(libjpeg.closed(self._data)))


def open_jpeg(data: bytes, limits: Limits) -> Picture:
    """The picture in a JPEG, its announced size checked against the limit.

    Raises:
        ImageError: cut short before its frame header, of an unknown process, or beyond a limit.
    """
    frame = _frame(data)
    check_size(frame.rows, frame.columns, limits)
    return JpegPicture(data, frame)


def read_header(data: bytes, size: int) -> dict[str, Any]:  # noqa: ARG001
    """The columns of schema.MANIFEST_HEADERS that a JPEG can tell, from its first bytes.

    Raises:
        ImageError: the header is damaged, or does not end within `data`.
    """
    return {**_known(_frame(data)), "frames": 1}


def _known(frame: JpegFrame) -> dict[str, object]:
    return {
        "rows": frame.rows,
        "columns": frame.columns,
        "bits": frame.bits,
        "photometric": _PHOTOMETRIC[frame.components],
        "transfer_syntax": "jpeg",
    }


def _frame(data: bytes) -> JpegFrame:
    """The frame header of a JPEG of 8 or 12 bits."""
    frame = jpeg_frame(data)
    if frame is None:
        code = ErrorCode.CORRUPT if b"\xff\xda" in data else ErrorCode.TRUNCATED
        raise ImageError(code, "the JPEG has no frame header")
    depths = (8,) if frame.components == 4 else (8, 12)
    if frame.bits not in depths or frame.components not in _PHOTOMETRIC:
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"a JPEG of {frame.components} components with {frame.bits} bits")
    return frame
