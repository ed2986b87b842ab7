"""PNG to pictures, at their full depth.

Up to 8 bits it is decoded by Pillow, which cuts 16-bit colour to 8 bits; 16 bits therefore by libpng, through
imagecodecs.
torchvision gives the same pixels no faster, and its import costs a decoding process seconds: benchmarks/decode.py.
Of an animated PNG the still picture is read.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL.PngImagePlugin import PngImageFile

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.libraries import foreign
from ad_jobs.images.picture import Picture, check_size, empty_header
from ad_jobs.images.policy import Limits
from ad_jobs.images.raster import RasterPicture, eight_bits, exif_orientation, pillow, with_channels

# PNG 11.2.2.
_COLOUR_TYPES = {0: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR", 4: "MONOCHROME2", 6: "RGB"}


class PngHeader(NamedTuple):
    """What the first chunk of a PNG says."""

    rows: int
    columns: int
    bits: int
    photometric: str


def open_png(data: bytes, limits: Limits) -> Picture:
    """The picture in a PNG, its structure checked to the last chunk and its size against the limit.

    Raises:
        ImageError: cut short, damaged, or beyond a limit.
    """
    header = _header(data)
    check_size(header.rows, header.columns, limits)
    _check_chunks(data)

    def samples() -> tuple[npt.NDArray[Any], int]:
        with pillow():
            image = PngImageFile(BytesIO(data))
            orientation = exif_orientation(image)
            if header.bits < 16:
                _unify_transparency(image, header.bits)
                return eight_bits(image), orientation
        with foreign("libpng"):
            return with_channels(np.asarray(imagecodecs.png_decode(data))), orientation

    # Pillow stretches 1, 2 and 4 bits to 8 (a window in stored values is in these).
    return RasterPicture(empty_header(**header._asdict(), transfer_syntax="png"), max(8, header.bits), samples)


def _unify_transparency(image: PngImageFile, bits: int) -> None:
    """Bring the grey or colour that tRNS (PNG 11.3.2.1) calls transparent to the 8 bits that Pillow stretches to.

    Of its two bytes only the lowest `bits` count.
    """
    said = image.info.get("transparency")
    full_scale = (1 << bits) - 1
    if isinstance(said, int) and image.mode in ("1", "L"):
        image.info["transparency"] = (said & full_scale) * (255 // full_scale)
    elif isinstance(said, tuple):
        image.info["transparency"] = tuple(part & full_scale for part in said)


def read_header(data: bytes, size: int) -> dict[str, Any]:  # noqa: ARG001
    """The columns of schema.MANIFEST_HEADERS that a PNG can tell, from its first bytes.

    Raises:
        ImageError: the header is damaged, or does not end within `data`.
    """
    return {**_header(data)._asdict(), "frames": 1, "transfer_syntax": "png"}


def _header(data: bytes) -> PngHeader:
    if len(data) < 33:
        raise ImageError(ErrorCode.TRUNCATED, "the PNG ends within its header")
    length, name, columns, rows, depth, colour = struct.unpack_from(">L4sLLBB", data, 8)
    if (length, name) != (13, b"IHDR") or colour not in _COLOUR_TYPES or depth not in (1, 2, 4, 8, 16):
        raise ImageError(ErrorCode.CORRUPT, "the PNG has no valid header chunk")
    return PngHeader(rows, columns, depth, _COLOUR_TYPES[colour])


def _check_chunks(data: bytes) -> None:
    """Raise ImageError unless the chunks follow one another to IEND and the critical ones are undamaged.

    Decoders forgive a lost end, and Pillow a wrong checksum of pixel data (PNG 5.3, 13.3).
    """
    offset = 8
    while offset + 12 <= len(data):
        length, name = struct.unpack_from(">L4s", data, offset)
        end = offset + 12 + length
        if end > len(data):
            break
        critical = name[:1].isupper()
        if critical and zlib.crc32(memoryview(data)[offset + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise ImageError(ErrorCode.CORRUPT, "a chunk of the PNG does not match its checksum")
        if name == b"IEND":
            return
        offset = end
    raise ImageError(ErrorCode.TRUNCATED, f"the PNG ends after {len(data)} bytes, before its end chunk")
