"""PNG and JPEG to pictures, at their full depth and the right way up.

PNG up to 8 bits is decoded by Pillow, which cuts 16-bit colour to 8 bits; 16-bit PNG therefore by libpng and
JPEG by libjpeg-turbo, both through imagecodecs. torchvision gives the same pixels no faster, and its import
costs a decoding process seconds: benchmarks/decode.py.

Alpha is composited over black: what a transparent pixel hides is no part of the picture, and black is what
padding is. Colour profiles and gamma are not applied. Of an animated PNG the still picture is read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import window
from ad_jobs.images.codestream import JpegFrame, jpeg_frame
from ad_jobs.images.picture import Numbered, Picture, Pixels, check_size, empty_header, foreign
from ad_jobs.images.policy import Limits, PixelPolicy

_PNG_COLOUR_TYPES = {0: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR", 4: "MONOCHROME2", 6: "RGB"}  # PNG 11.2.2
_JPEG_COMPONENTS = {1: "MONOCHROME2", 3: "RGB", 4: "CMYK"}
_ORIENTATION = 0x0112  # EXIF and TIFF tag


class RasterPicture:
    """A PNG or JPEG; `samples` decodes it to [rows, columns, 1 to 4], as stored and before orientation."""

    frames = 1

    def __init__(
        self, header: dict[str, object], bits: int, samples: Callable[[], tuple[npt.NDArray[Any], int]]
    ) -> None:
        self.header = header
        self._bits = bits
        self._samples = samples

    def read(self, policy: PixelPolicy, only: int | None = None) -> Numbered:  # noqa: ARG002
        """As `Picture.read`; there is only frame 0."""
        samples, orientation = self._samples()
        full_scale = float(2**self._bits - 1)
        yield 0, oriented(shown(samples, (0.0, full_scale), policy, alpha_scale=full_scale), orientation)


def open_png(data: bytes, limits: Limits) -> Picture:
    """The picture in a PNG, its structure checked to the last chunk and its size against the limit.

    Raises:
        ImageError: cut short, damaged, or beyond a limit.
    """
    rows, columns, depth, colour = _png_header(data)
    check_size(rows, columns, limits)
    _check_png_chunks(data)

    def samples() -> tuple[npt.NDArray[Any], int]:
        with _pillow():
            image = PngImageFile(BytesIO(data))
            orientation = _orientation(image)
            if depth < 16:
                return _eight_bits(image), orientation
        with foreign("libpng"):
            return _with_channels(imagecodecs.png_decode(data)), orientation

    header = empty_header(
        rows=rows, columns=columns, bits=depth, photometric=_PNG_COLOUR_TYPES[colour], transfer_syntax="png"
    )
    # Pillow stretches 1, 2 and 4 bits to 8 (a window in stored values is in these).
    return RasterPicture(header, max(8, depth), samples)


def open_jpeg(data: bytes, limits: Limits) -> Picture:
    """The picture in a JPEG, its announced size checked against the limit.

    Raises:
        ImageError: cut short before its frame header, of an unknown process, or beyond a limit.
    """
    frame = _jpeg_header(data)
    rows, columns, bits, components = frame.rows, frame.columns, frame.bits, frame.components
    check_size(rows, columns, limits)

    def samples() -> tuple[npt.NDArray[Any], int]:
        # libjpeg fills what is missing with grey and says nothing. The search starts behind the frame header:
        # a thumbnail before it has an end of its own.
        if b"\xff\xd9" not in data[frame.end :]:
            raise ImageError(ErrorCode.TRUNCATED, "the JPEG has no end marker")
        orientation = 1
        if bits == 8:  # Pillow opens no other
            with _pillow():
                image = JpegImageFile(BytesIO(data))
                orientation = _orientation(image)
                if components == 4:  # CMYK and its inversions
                    return _eight_bits(image), orientation
        with foreign("libjpeg"):
            return _with_channels(imagecodecs.jpeg8_decode(data)), orientation

    header = empty_header(
        rows=rows, columns=columns, bits=bits, photometric=_JPEG_COMPONENTS[components], transfer_syntax="jpeg"
    )
    return RasterPicture(header, bits, samples)


def read_header(data: bytes, size: int) -> dict[str, Any]:  # noqa: ARG001
    """The columns of schema.MANIFEST_HEADERS that a PNG or JPEG can tell, from its first bytes.

    Raises:
        ImageError: the header is damaged, or does not end within `data`.
    """
    if data[:1] == b"\x89":
        rows, columns, bits, colour = _png_header(data)
        kind, photometric = "png", _PNG_COLOUR_TYPES[colour]
    else:
        frame = _jpeg_header(data)
        rows, columns, bits = frame.rows, frame.columns, frame.bits
        kind, photometric = "jpeg", _JPEG_COMPONENTS[frame.components]
    return {
        "rows": rows,
        "columns": columns,
        "frames": 1,
        "bits": bits,
        "photometric": photometric,
        "transfer_syntax": kind,
    }


def shown(
    samples: npt.NDArray[Any],
    full_range: tuple[float, float],
    policy: PixelPolicy,
    *,
    alpha_scale: float | None,
    inverted: bool = False,
) -> Pixels:
    """Samples [rows, columns, 1 to 4] as [rows, columns] or [rows, columns, 3] in [0, 1], 1 = white.

    One or two samples are grey, which the policy's window applies to; three or four are colour, by full
    scale. The second or fourth is alpha, `alpha_scale` being opaque; None says that it counts for nothing.
    `inverted`: the lowest grey is white.
    """
    depth = samples.shape[2]
    if depth <= 2:

        def grey(values: window.Grey) -> Pixels:
            found = window.apply(values, policy.window, lambda own: window.spread(own, *full_range))
            return ((1.0 - found) if inverted else found).astype(np.float32)

        stored = samples[..., 0]
        pixels = grey(stored.astype(np.float64)) if policy.window == "percentile" else window.each(stored, grey)
    else:
        low, high = full_range
        # Half a picture's time goes into making floats of colour: one pass where the range starts at 0.
        colour = samples[..., :3] if low == 0.0 else samples[..., :3].astype(np.float64) - low
        pixels = np.divide(colour, float(max(high - low, 1e-30)), dtype=np.float32)
        np.minimum(pixels, 1.0, out=pixels)
    if depth in (2, 4) and alpha_scale is not None:
        alpha = np.clip(samples[..., -1].astype(np.float32) / np.float32(alpha_scale), 0.0, 1.0)
        pixels = pixels * (alpha if pixels.ndim == 2 else alpha[..., None])
    return pixels


def oriented(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels as displayed, from the EXIF or TIFF orientation 1 to 8 (TIFF 6.0, section 8)."""
    if orientation in (5, 6, 7, 8):  # stored columns are displayed rows
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _png_header(data: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, bit depth and colour type of a PNG."""
    if len(data) < 33:
        raise ImageError(ErrorCode.TRUNCATED, "the PNG ends within its header")
    length, name, columns, rows, depth, colour = struct.unpack_from(">L4sLLBB", data, 8)
    if (length, name) != (13, b"IHDR") or colour not in _PNG_COLOUR_TYPES or depth not in (1, 2, 4, 8, 16):
        raise ImageError(ErrorCode.CORRUPT, "the PNG has no valid header chunk")
    return rows, columns, depth, colour


def _check_png_chunks(data: bytes) -> None:
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


def _jpeg_header(data: bytes) -> JpegFrame:
    """The frame header of a JPEG of 8 or 12 bits."""
    frame = jpeg_frame(data)
    if frame is None:
        code = ErrorCode.CORRUPT if b"\xff\xda" in data else ErrorCode.TRUNCATED
        raise ImageError(code, "the JPEG has no frame header")
    if frame.bits not in (8, 12) or frame.components not in _JPEG_COMPONENTS:
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"a JPEG of {frame.components} components with {frame.bits} bits")
    return frame


@contextmanager
def _pillow() -> Iterator[None]:
    """As `foreign`, telling a stream that ends too early from a damaged one."""
    with foreign("Pillow"):
        try:
            yield
        except OSError as error:
            # Pillow has one class for all that ails a stream; this text is its own and quotes no header.
            if "truncated" in str(error):
                raise ImageError(ErrorCode.TRUNCATED, "Pillow: the stream ends before its pixels do") from None
            raise


def _eight_bits(image: ImageFile.ImageFile) -> npt.NDArray[np.uint8]:
    """A Pillow image of 8 bits or less as [rows, columns, 1 to 4]: grey, grey + alpha, RGB or RGBA."""
    transparent = "transparency" in image.info
    plain: Image.Image
    match image.mode:
        case "L" | "LA" | "RGB" | "RGBA" if not transparent:
            plain = image
        case "1" | "L":
            plain = image.convert("LA" if transparent else "L")
        case "RGB" | "P" | "PA":
            plain = image.convert("RGBA" if transparent or image.mode == "PA" else "RGB")
        case "CMYK":  # Pillow has already undone Adobe's inversion
            plain = image.convert("RGB")
        case other:
            raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"Pillow mode {other}")
    return _with_channels(np.asarray(plain))


def _with_channels(samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return samples[..., None] if samples.ndim == 2 else samples


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 where none can be read: broken EXIF is no reason to lose the pixels."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (ValueError, TypeError, KeyError, IndexError, OSError, SyntaxError, struct.error):
        return 1
