"""JPEG of 8 and 12 bits to pictures, by libjpeg.

torchvision gives the same pixels no faster, and its import costs a decoding process seconds: benchmarks/decode.py.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy.typing as npt
from PIL.JpegImagePlugin import JpegImageFile

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import libjpeg
from ad_jobs.images.codestream import JpegFrame, jpeg_frame
from ad_jobs.images.picture import Picture, check_size, empty_header
from ad_jobs.images.policy import Limits
from ad_jobs.images.raster import RasterPicture, eight_bits, exif_orientation, pillow, with_channels

# By the number of components.
_PHOTOMETRIC = {1: "MONOCHROME2", 3: "RGB", 4: "CMYK"}


def open_jpeg(data: bytes, limits: Limits) -> Picture:
    """The picture in a JPEG, its announced size checked against the limit.

    Raises:
        ImageError: cut short before its frame header, of an unknown process, or beyond a limit.
    """
    frame = _frame(data)
    check_size(frame.rows, frame.columns, limits)

    def samples() -> tuple[npt.NDArray[Any], int]:
        orientation = 1
        # Pillow opens no other depth.
        if frame.bits == 8:
            with pillow():
                image = JpegImageFile(BytesIO(libjpeg.closed(data)))
                orientation = exif_orientation(image)
            # CMYK and its inversions.
            if frame.components == 4:
                picture.remarks |= libjpeg.examine(data)
                with pillow():
                    return eight_bits(image), orientation
        found, remarks = libjpeg.decode(data, frame)
        picture.remarks |= remarks
        return with_channels(found), orientation

    picture = RasterPicture(empty_header(**_known(frame)), frame.bits, samples)
    return picture


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
