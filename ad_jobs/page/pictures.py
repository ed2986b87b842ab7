"""Where the pictures of a page go: into it as data URIs, or into a folder beside it, and are then loaded lazily."""

from __future__ import annotations

import base64
import hashlib
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from cluster import storage

# Of a page that has no more cards than this all pictures stand in it.
INLINE_CARDS = 24
FOLDER = "pictures"
_JPEG_QUALITY = 88


class Pictures:
    """Pictures of one page; in a folder they are named by their content, and one that is shown twice is there once."""

    def __init__(self, beside: str | None = None) -> None:
        """`beside` is the page's folder, whose sub-folder takes the pictures; None to put them into the page."""
        self.beside = beside
        self._names: set[str] = set()

    def put(self, pixels: npt.NDArray[np.uint8], kind: str) -> str:
        """The address of a picture [h, w, 3 or 4] as a PNG or JPEG, as it stands in the page."""
        data = encoded(pixels, kind)
        if self.beside is None:
            return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
        name = f"{hashlib.sha256(data).hexdigest()[:24]}.{kind.lower()}"
        if name not in self._names:
            storage.write_bytes(storage.join(self.beside, FOLDER, name), data)
            self._names.add(name)
        return f"{FOLDER}/{name}"

    def remove_others(self, page_folder: str) -> None:
        """Remove what an earlier page left in the folder beside it."""
        folder = storage.join(page_folder, FOLDER)
        for name in storage.list_names(folder) if storage.is_folder(folder) else []:
            if name not in self._names:
                storage.delete(storage.join(folder, name))


def encoded(pixels: npt.NDArray[np.uint8], kind: str) -> bytes:
    """A picture [h, w, 3 or 4] as a PNG or JPEG."""
    buffer = io.BytesIO()
    options = {"quality": _JPEG_QUALITY} if kind == "JPEG" else {"optimize": True}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
