"""PNG, JPEG and TIFF files made in code, non-square, and the numbers they are decoded to."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from ad_jobs.errors import ImageError
from ad_jobs.images.decode import decode
from ad_jobs.images.policy import Limits, PixelPolicy, Window

ROWS, COLUMNS = 12, 20
LIMITS = Limits()
# Stored frames count in steps of 1/65535: half a step is what rounding may take.
HALF_STEP = 0.5 / 65535 + 1e-9
_RNG = np.random.default_rng(5)
GREY8 = _RNG.integers(0, 256, (ROWS, COLUMNS), dtype=np.uint8)
RGB8 = _RNG.integers(0, 256, (ROWS, COLUMNS, 3), dtype=np.uint8)
GREY16 = _RNG.integers(0, 65536, (ROWS, COLUMNS), dtype=np.uint16)
RGB16 = _RNG.integers(0, 65536, (ROWS, COLUMNS, 3), dtype=np.uint16)


def policy(channels: int = 3, window: Window = "dicom", rows: int = ROWS, columns: int = COLUMNS) -> PixelPolicy:
    """A policy under which a picture of this size keeps it."""
    return PixelPolicy(channels=channels, height_px=rows, width_px=columns, window=window)


def shown(data: bytes, **options: Any) -> npt.NDArray[Any]:
    """The only frame's values in [0, 1], [rows, columns] or [rows, columns, 3], at its own size."""
    (frame,) = decode(data, policy(**options), LIMITS).frames
    values = frame.pixels.transpose(1, 2, 0) / 65535
    return values[..., 0] if values.shape[2] == 1 else values


def refused(data: bytes, limits: Limits = LIMITS) -> ImageError:
    """Why the picture cannot be scored."""
    with pytest.raises(ImageError) as caught:
        decode(data, policy(), limits)
    return caught.value


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file of that kind, by Pillow."""
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(pixels: npt.NDArray[Any], **options: Any) -> bytes:
    """The bytes of a TIFF, by tifffile."""
    stream = BytesIO()
    tifffile.imwrite(stream, pixels, **{"photometric": "minisblack", **options})
    return stream.getvalue()
