"""Pictures in the forms that may be decoded at a smaller size, and the policies that do and do not."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import dicomkit as kit
import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

from ad_jobs.images.policy import PixelPolicy

Array = npt.NDArray[Any]

# Never square, never a multiple of the factor: the last blocks are of fewer pixels.
ROWS, COLUMNS = 259, 390
WHOLE = PixelPolicy(channels=3, height_px=32, width_px=44)
REDUCED = WHOLE.model_copy(update={"decode": "reduced"})
FACTOR = 4

Y, X = np.mgrid[0:ROWS, 0:COLUMNS]
# Steep from side to side, so that a shift by half a reduced pixel is seen.
SMOOTH = 0.5 + 0.3 * np.sin(X / 40) + 0.15 * np.cos(Y / 25)


def stored(bits: int, low: int = 0) -> Array:
    kind = ("i" if low < 0 else "u") + ("1" if bits <= 8 else "2")
    return np.rint(SMOOTH * (2**bits - 1) + low).astype(kind)


def colour() -> Array:
    return np.stack([stored(8), stored(8)[::-1], 255 - stored(8)[:, ::-1]], axis=-1)


def j2k(pixels: Array, bits: int, level: float = 0, **options: Any) -> bytes:
    how = {"codecformat": "j2k", "reversible": level == 0, "bitspersample": bits, "mct": False, **options}
    return bytes(imagecodecs.jpeg2k_encode(pixels, level, **how))


def tiled(pixels: Array, height: int, width: int) -> bytes:
    """Eight bits, losslessly, in tiles of that size."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True, tile_size=(width, height))
    return stream.getvalue()


def file(codes: list[bytes], syntax: str, like: Array, bits: int | None = None, **attributes: Any) -> bytes:
    ds = kit.dataset(like, bits=bits, **attributes)
    kit.encapsulated(ds, codes)
    ds.file_meta.TransferSyntaxUID = syntax
    return kit.encode(ds)


def jpeg(pixels: Array, **options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


GREY12 = stored(12)
