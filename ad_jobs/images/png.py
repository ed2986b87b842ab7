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
from cluster.counting import counted

# PNG 11.2.2.
_COLOUR_TYPES = {0: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR", 4: "MONOCHROME2", 6: "RGB"}
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# PNG 8.2, the passes of an interlaced picture: first column and row, and the steps to the next ones.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class PngHeader(NamedTuple):
    """What the first chunk of a PNG says."""

    rows: int
    columns: int
    bits: int
    photometric: str
    samples: int

    def told(self) -> dict[str, Any]:
        """Of it, the columns of schema.HEADER."""
        return {name: value for name, value in self._asdict().items() if name != "samples"}


def open_png(data: bytes, limits: Limits) -> Picture:
    """The picture in a PNG, its structure checked to the last chunk and its size against the limit.

    Raises:
        ImageError: cut short, damaged, or beyond a limit.
    """
    header = _header(data)
    check_size(header.rows, header.columns, limits)
    coded = _image_data(data)

    def samples() -> tuple[npt.NDArray[Any], int]:
        with pillow():
            image = PngImageFile(BytesIO(data))
            if header.bits < 16:
                # First: asked for EXIF, Pillow decodes as well, and what broken EXIF raises is passed over.
                image.load()
                # Rows come from above: they are all there if the last one is more than what is left black.
                interlaced = data[28] == 1
                last = image.crop((0, header.rows - 1, header.columns, header.rows))
                if interlaced or not np.asarray(last).any():
                    _check_rows(data, _unpacked_bytes(header, interlaced=interlaced), coded)
                _unify_transparency(image, header.bits)
                return eight_bits(image), exif_orientation(image)
        with foreign("libpng"):
            deep = with_channels(np.asarray(imagecodecs.png_decode(data)))
        with pillow():
            return deep, exif_orientation(image)

    # Pillow stretches 1, 2 and 4 bits to 8 (a window in stored values is in these).
    return RasterPicture(empty_header(**header.told(), transfer_syntax="png"), max(8, header.bits), samples)


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
    return {**_header(data).told(), "frames": 1, "transfer_syntax": "png"}


def _header(data: bytes) -> PngHeader:
    if len(data) < 33:
        raise ImageError(ErrorCode.TRUNCATED, "the PNG ends within its header")
    length, name, columns, rows, depth, colour = struct.unpack_from(">L4sLLBB", data, 8)
    if (length, name) != (13, b"IHDR") or colour not in _COLOUR_TYPES or depth not in (1, 2, 4, 8, 16):
        raise ImageError(ErrorCode.CORRUPT, "the PNG has no valid header chunk")
    return PngHeader(rows, columns, depth, _COLOUR_TYPES[colour], _SAMPLES[colour])


def _image_data(data: bytes) -> list[slice]:
    """Where the pixels lie in the PNG, in the order of their chunks.

    Decoders forgive a lost end, and Pillow a wrong checksum of pixel data (PNG 5.3, 13.3).

    Raises:
        ImageError: the chunks do not follow one another to IEND, or a critical one is damaged.
    """
    offset = 8
    found: list[slice] = []
    while offset + 12 <= len(data):
        length, name = struct.unpack_from(">L4s", data, offset)
        end = offset + 12 + length
        if end > len(data):
            break
        critical = name[:1].isupper()
        if critical and zlib.crc32(memoryview(data)[offset + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise ImageError(ErrorCode.CORRUPT, "a chunk of the PNG does not match its checksum")
        if name == b"IEND":
            return found
        if name == b"IDAT":
            found.append(slice(offset + 8, end - 4))
        offset = end
    raise ImageError(ErrorCode.TRUNCATED, f"the PNG ends after {counted(len(data), 'byte')}, before its end chunk")


def _check_rows(data: bytes, needed: int, coded: list[slice]) -> None:
    """Raise ImageError unless the pixels unpack to as many bytes: what is missing Pillow leaves black."""
    unpacker, count = zlib.decompressobj(), 0
    with foreign("zlib"):
        for part in coded:
            if count < needed:
                count += len(unpacker.decompress(data[part], needed - count))
    if count < needed:
        raise ImageError(ErrorCode.TRUNCATED, f"the pixels of the PNG unpack to {count} of {counted(needed, 'byte')}")


def _unpacked_bytes(header: PngHeader, *, interlaced: bool) -> int:
    """How many bytes the filtered rows take, PNG 7.2 and 8.2: of the picture, or of its seven reduced ones."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(header.columns - left) // across), -(-(header.rows - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * header.samples * header.bits + 7) // 8)
    return total
