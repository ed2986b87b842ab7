"""Which pictures of a TIFF are its frames: full-resolution pages, and stacks that lie behind a single page."""

from __future__ import annotations

from io import BytesIO
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.libraries import foreign
from ad_jobs.images.picture import check_frames
from ad_jobs.images.policy import Limits
from cluster.counting import counted

# Bits of NewSubfileType.
_REDUCED, _MASK = 1, 4
_UNCOMPRESSED = 1
# TIFF 6.0, section 14: the predictor is a part of LZW; libtiff has it for deflate, LZMA and Zstandard as well.
_PREDICTED = frozenset({5, 8, 32946, 34925, 34926, 50000})


class TiffFrame(NamedTuple):
    """A page, and how many bytes behind its own pixels the frame's lie."""

    page: Any
    behind: int = 0

    def samples(self, data: bytes) -> npt.NDArray[Any]:
        """The frame's samples as its page has them; `data` is the file."""
        page = self.page
        if not self.behind:
            return np.asarray(page.asarray(maxworkers=1))
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        values = np.frombuffer(data, dtype, prod(page.shape), page.dataoffsets[0] + self.behind)
        return values.reshape(page.shape).astype(page.dtype)


def tiff_frames(data: bytes, limits: Limits | None, size: int) -> list[TiffFrame]:
    """The frames of a TIFF of `size` bytes, of which `data` has the first ones or all, in the order of their pages.

    Raises:
        ImageError: no directory can be read, the file ends within a stack, or there are too many frames.
    """
    with foreign("tifffile"):
        try:
            # For ScanImage it would work out pages from the first ones' places: they are read as they are linked.
            container = tifffile.TiffFile(BytesIO(data), is_scanimage=False)
        except tifffile.TiffFileError:
            raise ImageError(ErrorCode.TRUNCATED, "tifffile: no directory where the TIFF says it is") from None
        pages: list[Any] = []
        seen: set[int] = set()
        for page in container.pages:
            # It follows a directory that leads back to an earlier one for ever.
            if page.offset in seen:
                raise ImageError(ErrorCode.CORRUPT, "the directories of the TIFF lead in a circle")
            seen.add(page.offset)
            if limits is not None:
                # Those that are no frames cost as much to read.
                check_frames(len(seen), limits)
            # tifffile's light stand-in for like pages: never asked for.
            if not isinstance(page, tifffile.TiffPage) or int(page.subfiletype) & (_REDUCED | _MASK):
                continue
            # It would undo a predictor after any compression.
            if int(page.compression) not in _PREDICTED:
                page.predictor = 1
            pages.append(page)
        if len(pages) == 1 == len(container.pages):
            return _stack(container, pages[0], size, limits)
        if pages and pages[0].is_svs:
            # Aperio: thumbnail and label are in strips, and levels are smaller; none of them says what it is.
            first = pages[0]
            pages = [first, *(page for page in pages[1:] if page.is_tiled and page.shape == first.shape)]
        return [TiffFrame(page) for page in pages]


def _stack(container: Any, page: Any, size: int, limits: Limits | None) -> list[TiffFrame]:
    """The frames of a file with one page: ImageJ, MetaMorph and tifffile lay a stack behind it, without directories."""
    count = _stacked(container, page)
    if count <= 1 or int(page.compression) != _UNCOMPRESSED or not page.is_contiguous:
        return [TiffFrame(page)]
    if limits is not None:
        check_frames(count, limits)
    end = page.dataoffsets[0] + count * page.nbytes
    if end > size:
        raise ImageError(ErrorCode.TRUNCATED, f"a stack of {counted(count, 'frame')} up to byte {end} of {size}")
    return [TiffFrame(page, index * page.nbytes) for index in range(count)]


def _stacked(container: Any, page: Any) -> int:
    """How many frames a file with one page says that it has."""
    if page.is_imagej:
        told = container.imagej_metadata or {}
        channels = int(told.get("channels", 1))
        # Samples of colour are called channels by some writers.
        if channels == int(page.samplesperpixel):
            channels = 1
        stacked = channels * int(told.get("slices", 1)) * int(told.get("frames", 1))
        return stacked if stacked > 1 else int(told.get("images", 1))
    if page.is_stk:
        return int((container.stk_metadata or {}).get("NumberPlanes", 1))
    if page.is_shaped:
        shapes = [prod(told.get("shape", ())) for told in container.shaped_metadata or ()]
        return shapes[0] // prod(page.shape) if shapes else 1
    return 1
