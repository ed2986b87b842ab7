"""TIFF and BigTIFF to pictures: at full depth, integers and floats, the right way up.

Decoded by tifffile and imagecodecs: Pillow cuts 16-bit colour to 8 bits here as well.
Pixels of GDAL's nodata value are padding: no part of the picture, and black.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import window
from ad_jobs.images.libraries import foreign
from ad_jobs.images.picture import Numbered, Picture, Pixels, Shown, check_finite, check_size, empty_header
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.images.raster import ORIENTATION, oriented, shown
from ad_jobs.images.remarks import Remark
from ad_jobs.images.tiff_frames import TiffFrame, tiff_frames
from ad_jobs.images.tiff_segments import check_segments
from cluster.counting import counted

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
# ExtraSamples: colour not yet multiplied by alpha.
_UNASSOCIATED_ALPHA = 2
_JPEG_COMPRESSIONS = (6, 7)
_GDAL_NODATA = 42113


class TiffPicture:
    """An opened TIFF; `read` decodes it page by page."""

    def __init__(self, frames: list[TiffFrame], data: bytes, limits: Limits) -> None:
        self.frames = len(frames)
        self.remarks: set[str] = set()
        self._frames = frames
        self._data = data
        self._limits = limits
        with foreign("tifffile"):
            for index, frame in enumerate(frames):
                if not frame.behind:
                    _check_page(frame.page, index, len(data), limits)
            self.header = empty_header(**_known(frames[0].page), transfer_syntax="tiff")

    def reduction(self, policy: PixelPolicy) -> int:  # noqa: ARG002
        """As `Picture.reduction`: none."""
        return 1

    def read(self, policy: PixelPolicy, only: int | None = None) -> Numbered:
        """As `Picture.read`."""
        for index in range(self.frames) if only is None else [only]:
            page = self._frames[index].page
            with foreign("tifffile"):
                self.remarks |= check_segments(page, index, self._limits)
                samples = self._frames[index].samples(self._data)
                photometric, bits = int(page.photometric), int(page.bitspersample)
                extra = [int(kind) for kind in page.extrasamples]
                orientation = int(page.tags.valueof(ORIENTATION, 1))
                # Channels last, whatever the planar configuration.
                if samples.ndim == 3 and page.axes.startswith("S"):
                    samples = np.moveaxis(samples, 0, -1)
                padding = self._padding(samples, page)
                if photometric == _PALETTE:
                    # TIFF 6.0, section 5: entries of 16 bits. Writers are known to give 8; so does libtiff read them.
                    bits = 16 if page.colormap.max() > 0xFF else 8
                    samples, photometric = np.moveaxis(page.colormap[:, samples], 0, -1), _RGB
            if samples.ndim == 2:
                samples = samples[..., None]
            if samples.dtype.kind == "f":
                if padding is not None:
                    # Whatever stands there, it is no value.
                    samples = np.where(padding[..., None], _any_other(samples, padding), samples)
                check_finite(samples, index)
            pixels = self._page(samples, photometric, bits, extra, policy, padding)
            yield Shown(index, oriented(pixels, orientation))

    def _page(
        self,
        samples: npt.NDArray[Any],
        photometric: int,
        bits: int,
        extra: list[int],
        policy: PixelPolicy,
        padding: npt.NDArray[np.bool_] | None,
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
            padding=padding,
        )

    def _padding(self, samples: npt.NDArray[Any], page: Any) -> npt.NDArray[np.bool_] | None:
        """The pixels [rows, columns] of which every sample is GDAL's nodata value; None if it names none."""
        said = page.tags.valueof(_GDAL_NODATA)
        if said is None:
            return None
        try:
            value = float(str(said).strip("\x00 ").replace(",", "."))
            # As the samples would hold it.
            nodata = samples.dtype.type(value if samples.dtype.kind == "f" else int(value))
        except (ValueError, OverflowError):
            self.remarks.add(Remark.NODATA)
            return None
        found = np.isnan(samples) if np.isnan(value) else samples == nodata
        return found if samples.ndim == 2 else found.all(axis=-1)


def open_tiff(data: bytes, limits: Limits) -> Picture:
    """The picture in a TIFF, every page's directory checked against the limits and the object's length.

    Raises:
        ImageError: cut short, damaged, of a kind no detector can take, or beyond a limit.
    """
    frames = tiff_frames(data, limits, len(data))
    if not frames:
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, "a TIFF without a full-resolution page")
    return TiffPicture(frames, data, limits)


def read_header(data: bytes, size: int) -> dict[str, Any]:
    """The columns of schema.MANIFEST_HEADERS that a TIFF can tell.

    Raises:
        ImageError: no directory can be read, or it lies beyond `data`: writers may put it at the very end.
    """
    frames = tiff_frames(data, None, size)
    if not frames:
        raise ImageError(ErrorCode.TRUNCATED if len(data) < size else ErrorCode.CORRUPT, "a TIFF without pages")
    with foreign("tifffile"):
        return {**_known(frames[0].page), "frames": len(frames), "transfer_syntax": "tiff"}


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
        raise ImageError(
            ErrorCode.UNSUPPORTED_IMAGE, f"page {index}: {counted(samples, 'sample')}, depth {page.imagedepth}"
        )
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


def _any_other(samples: npt.NDArray[Any], padding: npt.NDArray[np.bool_]) -> Any:
    """A value of the picture itself, which moves no range; 0 if all of it is padding."""
    kept = samples[~padding]
    return kept.flat[0] if kept.size else samples.dtype.type(0)


def _full_range(samples: npt.NDArray[Any], bits: int) -> tuple[float, float]:
    if samples.dtype.kind == "f":
        return window.float_range(samples)
    if samples.dtype.kind == "b":
        return 0.0, 1.0
    if samples.dtype.kind == "i":
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1
