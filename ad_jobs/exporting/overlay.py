"""A frame with its heatmap over it, at the frame's own size."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ad_jobs.errors import ImageError, JobError
from ad_jobs.exporting.originals import Refused, Row
from ad_jobs.exporting.tally import Refusal
from ad_jobs.images.guard import of_this_process
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.page.colours import overlay
from ad_jobs.results.read import Heatmap, open_heatmap

# How far the hottest colour covers the picture: what the report begins with.
OPACITY = 0.6


class Reader(NamedTuple):
    """What frames of one model are read with."""

    run_uri: str
    policy: PixelPolicy
    limits: Limits

    def heatmap(self, row: Row) -> Heatmap:
        """The heatmap of a row.

        Raises:
            Refused: none was kept, or it is damaged.
        """
        if row["heatmap"] is None:
            raise Refused(Refusal.NO_HEATMAP)
        try:
            return open_heatmap(self.run_uri, row["heatmap"])
        except JobError as error:
            raise Refused(Refusal.DAMAGED_HEATMAP) from error

    def overlaid(self, row: Row, data: bytes) -> npt.NDArray[np.uint8]:
        """The frame under its model's window, its heatmap laid over it: [rows, columns, 3] of the original's size.

        Raises:
            Refused: there is no heatmap, or the frame cannot be decoded.
        """
        heatmap = self.heatmap(row)
        side_px = max(heatmap.geometry.rows, heatmap.geometry.columns)
        try:
            picture = of_this_process().preview(data, int(row["frame"]), self.policy, self.limits, side_px)
        except ImageError as error:
            raise Refused(str(error.code)) from error
        return blended(picture, heatmap.drawn().on_source())


def blended(picture: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """A picture [rows, columns, 3] under the colours of a heatmap [rows, columns] in [0, 1].

    Raises:
        ValueError: they are of different sizes.
    """
    if picture.shape[:2] != heat.shape:
        raise ValueError(
            f"A heatmap is laid over the frame that it is of. Got: {picture.shape[:2]} and {heat.shape}. "
            "Lay it over the source first."
        )
    colours = overlay(heat)
    share = (OPACITY / 255) * colours[..., 3:]
    return np.rint(picture * (1 - share) + colours[..., :3] * share).astype(np.uint8)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A picture [rows, columns, 3] as PNG; the same pixels, the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
