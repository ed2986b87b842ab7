"""Pictures in the forms that may be decoded at a smaller size, and policies and models that do and do not."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import detectorkit
import dicomkit as kit
import imagecodecs
import numpy as np
import numpy.typing as npt
import scankit
import torch
from PIL import Image
from pydicom.uid import JPEG2000Lossless

from ad_jobs.fitting.intent import resolve
from ad_jobs.images.decode import decode
from ad_jobs.images.domain import DomainFile
from ad_jobs.images.model_input import to_input
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scoring.calibration import calibrate_on
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import publish, write_calibration
from ad_jobs.specs import FitSpec

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


def jpeg_2000(number: int, side_px: int, resolutions: int = 6, **attributes: Any) -> bytes:
    """scankit's picture of that number as a DICOM file: 12 bits, in lossless JPEG 2000."""
    pixels: Array = np.rint(scankit.picture(number, side_px) * 4095).astype(np.uint16)
    code = j2k(pixels, 12, codecformat="j2k", resolutions=resolutions)
    return file([code], JPEG2000Lossless, pixels, 12, StudyInstanceUID=f"1.2.{number}", **attributes)


def pixels(data: bytes, policy: PixelPolicy) -> npt.NDArray[np.uint16]:
    """A file's only frame."""
    return decode(data, policy, Limits()).frames[0].pixels


def fitted_pair(folder: Path, files: list[bytes], size_px: int) -> dict[str, str]:
    """Folders of two models that are fitted on the files alike but for how these are decoded, by that."""
    found = {}
    for how in ("full", "reduced"):
        intent = resolve(FitSpec(detector="linear", normal="/n", out="/m", size=size_px, decode=how)).in_grey()
        images = [pixels(data, intent.policy) for data in files]
        stacked = torch.from_numpy(to_input(np.stack(images), 1))
        detector = intent.detector()
        detectorkit.run_fit(detector, detectorkit.batches(stacked[:-4], 16), detectorkit.batches(stacked[-4:], 16))
        found[how] = str(folder / how)
        record = publish(found[how], "linear", detector, intent.policy, {"seed": 0}, DomainFile())
        given = calibrate_on(detector, map(HeldOut, images), model_id=record["model_id"], source="test", max_fpr=0.1)
        write_calibration(found[how], given)
    return found


def jpeg(pixels: Array, **options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


GREY12 = stored(12)
