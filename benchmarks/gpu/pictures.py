"""The images of a pack, as a detector's pixel policy would store them."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ad_jobs.images.geometry import resize

# In a pack: the weights of EfficientNet-Lite0's stages, the packages, and in each data set's archive its list.
WEIGHTS = "efficientnet_lite0.safetensors"
WHEELS = "wheels"
LIST = "images.csv"
COLUMNS = ("image", "anomalous", "split", "group")
FULL_SCALE = 65535

# Grey, [1, H, W].
Pixels = NDArray[np.uint16]


@dataclass(frozen=True)
class Pictures:
    """Decoded images, which a fit reads by position."""

    pixels: list[Pixels]
    anomalous: NDArray[np.bool_]
    group: list[str]

    def read(self, positions: Sequence[int]) -> Iterator[Pixels]:
        """The images at `positions` in this order."""
        return (self.pixels[position] for position in positions)


def list_text(rows: Sequence[dict[str, str]]) -> str:
    """The list of a data set's images as it stands in its archive."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def load(pack: Path, name: str, split: str, size_px: int, at_most: int | None = None) -> Pictures:
    """The images of one split of a data set, square, of each class at most so many."""
    with zipfile.ZipFile(pack / f"{name}.zip") as archive:
        listed = [row for row in csv.DictReader(io.StringIO(archive.read(LIST).decode())) if row["split"] == split]
        rows = [row for label in "01" for row in [row for row in listed if row["anomalous"] == label][:at_most]]
        pixels = [_decode(archive.read(row["image"]), size_px) for row in rows]
    return Pictures(pixels, np.array([row["anomalous"] == "1" for row in rows]), [row["group"] for row in rows])


def _decode(data: bytes, size_px: int) -> Pixels:
    # What ad_jobs.images makes of a grey JPEG, without the codecs that it decodes others with.
    with Image.open(io.BytesIO(data)) as image:
        grey = np.asarray(image, np.float32) / 255
    resized = np.clip(resize(grey, size_px, size_px), 0.0, 1.0)
    return np.rint(resized * FULL_SCALE).astype(np.uint16)[None]
