"""Masks of labelled images: what an expert marked, as pixels of the image as displayed."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ad_jobs.archive import objects
from ad_jobs.errors import ImageError, UsageError
from ad_jobs.images.policy import Limits
from cluster import storage


def read_mask(uri: str, rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """A mask file as bool [rows, columns], True where any channel but transparency is not zero.

    Raises:
        UsageError: no image, one of another size than the image it marks, or one that marks nothing.
    """
    try:
        with Image.open(io.BytesIO(objects.fetch(uri, Limits().max_bytes).data)) as image:
            # A palette's index says nothing; its colour does.
            picture = image.convert("RGB") if image.mode in ("P", "PA") else image
            pixels = np.asarray(picture)
            if picture.mode in ("LA", "RGBA", "La", "RGBa"):
                pixels = pixels[..., :-1]
    except (storage.StorageError, ImageError, UnidentifiedImageError, OSError, ValueError) as error:
        raise UsageError("A mask must be an image that can be read.", f"{uri}: {error}", "Check LABELS.") from error
    mask = np.asarray(pixels.any(axis=-1) if pixels.ndim == 3 else pixels != 0, dtype=bool)
    if mask.shape != (rows, columns):
        raise UsageError(
            "A mask must have the size of its image.",
            f"{uri} is {mask.shape[0]} x {mask.shape[1]}, the image {rows} x {columns} (rows x columns)",
            "Draw it on the image as stored.",
        )
    if not mask.any():
        remedy = "Leave the mask empty if it is not known."
        raise UsageError("The mask of an anomalous image must mark something.", uri, remedy)
    return mask
