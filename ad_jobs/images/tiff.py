"""TIFF and BigTIFF to pictures: one frame a page, at full depth, integers and floats, the right way up.

Decoded by tifffile and imagecodecs: Pillow cuts 16-bit colour to 8 bits here as well.
Reduced-resolution pages (thumbnails, pyramid levels) and transparency masks are no frames.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import window
from ad_jobs.images.libraries import foreign
from ad_jobs.images.picture import Numbered, Picture, Pixels, check_finite, check_frames, check_size, empty_header
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.images.raster import ORIENTATION, oriented, shown

# TIFF 6.0, PhotometricInterpretation.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_NAMES = {
    _WHITE_IS_ZERO: "MONOCHROME1",
    _BLACK_IS_ZERO: "MONOCHROME2",
    _RGB: "RGB",
    _PALETTE: "PALETTE COLOR",
    _SEPARATED: "CMYK",
    _YCBCR: "YBR_FULL",
}
# Samples of colour; any more are ExtraSamples.
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _SEPARATED: 4, _YCBCR: 3}
# Bits of NewSubfileType.
_REDUCED, _MASK = 1, 4
# ExtraSamples: colour not yet multiplied by alpha.
_UNASSOCIATED_ALPHA = 2
_JPEG_COMPRESSIONS = (6, 7)


class TiffPicture:
    """An opened TIFF; `read` decodes it page by page."""

    def __init__(self, pages: list[Any], data_bytes: int, limits: Limits) -> None:
        self.frames = len(pages)
        self.remarks: set[str] = set()
        self._pages = pages
        for index, page in enumerate(pages):
            with foreign("tifffile"):
                _check_page(page, index, data_bytes, limits)
        with foreign("tifffile"):
            self.header = empty_header(**_known(pages[0]), transfer_syntax="tiff")

    def read(self, policy: PixelPolicy, only: int | None = None) -> Numbered:
        """As `Picture.read`."""
        for index in range(self.frames) if only is None else [only]:
            page = self._pages[index]
            with foreign("tifffile"):
                samples = np.asarray(page.asarray(maxworkers=1))
                photometric, bits = int(page.photometric), int(page.bitspersample)
                extra = [int(kind) for kind in page.extrasamples]
                orientation = int(page.tags.valueof(ORIENTATION, 1))
                # Channels last, whatever the planar configuration.
                if samples.ndim == 3 and page.axes.startswith("S"):
                    samples = np.moveaxis(samples, 0, -1)
                if photometric == _PALETTE:
                    samples, bits, photometric = np.moveaxis(page.colormap[:, samples], 0, -1), 16, _RGB
            if samples.ndim == 2:
                samples = samples[..., None]
            if samples.dtype.kind == "f":
                check_finite(samples, index)
            pixels = self._page(samples, photometric, bits, extra, policy)
            yield index, oriented(pixels, orientation)

    def _page(
        self, samples: npt.NDArray[Any], photometric: int, bits: int, extra: list[int], policy: PixelPolicy
    ) -> Pixels:
        full_range = _full_range(samples, bits)
        if photometric == _SEPARATED:
            # Ink covers: none of the four is white. The plain conversion, without a profile.
            ink = np.clip(samples[..., :4].astype(np.float32) / np.float32(full_range[1]), 0.0, 1.0)
            return (1.0 - ink[..., :3]) * (1.0 - ink[..., 3:])
        colours = _COLOURS[photometric]
        # Colour that is already multiplied by its alpha lies over black as it is.
        alpha = extra[:1] == [_UNASSOCIATED_ALPHA]
        return shown(
            samples[..., : colours + 1] if alpha else samples[..., :colours],
            full_range,
            policy,
            alpha_scale=full_range[1] if alpha else None,
            inverted=photometric == _WHITE_IS_ZERO,
        )


def open_tiff(data: bytes, limits: Limits) -> Picture:
    """The picture in a TIFF, every page's directory checked against the limits and the object's length.

    Raises:
        ImageError: cut short, damaged, of a kind no detector can take, or beyond a limit.
    """
    pages = _pages(data, limits)
    if not pages:
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, "a TIFF without a full-resolution page")
    return TiffPicture(pages, len(data), limits)


def read_header(data: bytes, size: int) -> dict[str, Any]:
    """The columns of schema.MANIFEST_HEADERS that a TIFF can tell.

    Raises:
        ImageError: no directory can be read, or it lies beyond `data`: writers may put it at the very end.
    """
    pages = _pages(data, None)
    if not pages:
        raise ImageError(ErrorCode.TRUNCATED if len(data) < size else ErrorCode.CORRUPT, "a TIFF without pages")
    with foreign("tifffile"):
        return {**_known(pages[0]), "frames": len(pages), "transfer_syntax": "tiff"}


def _pages(data: bytes, limits: Limits | None) -> list[Any]:
    """The directories of the pages that are frames."""
    found: list[Any] = []
    with foreign("tifffile"):
        try:
            container = tifffile.TiffFile(BytesIO(data))
        except tifffile.TiffFileError:
            raise ImageError(ErrorCode.TRUNCATED, "tifffile: no directory where the TIFF says it is") from None
        for page in container.pages:
            # tifffile's light stand-in for like pages: never asked for.
            if not isinstance(page, tifffile.TiffPage):
                continue
            if int(page.subfiletype) & (_REDUCED | _MASK):
                continue
            found.append(page)
            if limits is not None:
                check_frames(len(found), limits)
    return found


def _known(page: Any) -> dict[str, object]:
    bits = page.bitspersample
    return {
        "rows": int(page.imagelength),
        "columns": int(page.imagewidth),
        "bits": int(bits if isinstance(bits, int) else bits[0]),
        "photometric": _NAMES.get(int(page.photometric)),
    }


def _check_page(page: Any, index: int, data_bytes: int, limits: Limits) -> None:
    """Raise ImageError unless the page is of a known kind, within the limits, and all there."""
    check_size(int(page.imagelength), int(page.imagewidth), limits)
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    dtype = page.dtype
    if photometric not in _COLOURS or dtype is None or dtype.kind not in "buif":
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"page {index}: TIFF photometric {photometric}, type {dtype}")
    colours = _COLOURS[photometric]
    if not colours <= samples <= colours + 1 or int(page.imagedepth) != 1:
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"page {index}: {samples} samples, depth {page.imagedepth}")
    if photometric == _YCBCR and int(page.compression) not in _JPEG_COMPRESSIONS:
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"page {index}: YCbCr outside of JPEG")
    if not page.dataoffsets or len(page.dataoffsets) != len(page.databytecounts):
        raise ImageError(ErrorCode.CORRUPT, f"page {index} lists no pixel data")
    # tifffile fills what is missing with zeros: look before it does.
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset + count > data_bytes:
            raise ImageError(ErrorCode.TRUNCATED, f"page {index}: pixels up to byte {offset + count} of {data_bytes}")
        if count == 0:
            raise ImageError(ErrorCode.CORRUPT, f"page {index}: a strip or tile without bytes")
    if len(page.dataoffsets) < int(np.prod(page.chunked)):
        raise ImageError(ErrorCode.TRUNCATED, f"page {index}: {len(page.dataoffsets)} strips or tiles of more")


def _full_range(samples: npt.NDArray[Any], bits: int) -> tuple[float, float]:
    if samples.dtype.kind == "f":
        return window.float_range(samples)
    if samples.dtype.kind == "b":
        return 0.0, 1.0
    if samples.dtype.kind == "i":
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1
