"""Where a heatmap is hot, as one outline; where that is in several places, or has holes, there is none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ad_jobs.results.read import Heatmap

# As hot as this share of the hottest place, and as the calibration's anchor, which normal images do not reach.
OF_THE_HOTTEST = 0.5
# Along the outline, with the region on the right: right, down, left, up.
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def outline(heatmap: Heatmap) -> npt.NDArray[np.float64] | None:
    """The closed outline of the hot region, [n, 2] of column and row in the source; its last point is its first.

    Coordinates are of PS3.3 C.18.6.1.1: 0, 0 is the upper left corner of the first pixel.
    None where no place is hot, or no single outline holds all that are.
    """
    values, geometry, anchor = heatmap
    box = np.s_[geometry.top : geometry.top + geometry.height, geometry.left : geometry.left + geometry.width]
    hot = values[box] >= max(OF_THE_HOTTEST * float(values[box].max()), anchor)
    corners = _corners(hot)
    if corners is None:
        return None
    scale = np.array([geometry.rows / geometry.height, geometry.columns / geometry.width])
    # DICOM has the column first.
    return (corners * scale)[:, ::-1]


def _corners(hot: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64] | None:
    """The corners (row, column) of the one region, clockwise and closed; edges of pixels are whole numbers."""
    if ndimage.label(hot)[1] != 1 or ndimage.label(~np.pad(hot, 1))[1] != 1:
        return None
    padded = np.pad(hot, 1)
    at = np.argwhere(padded)[0]
    # Nothing lies above or before the first pixel: its corner is passed once.
    start = position = (int(at[0]), int(at[1]))
    heading, found = 0, [start]
    while True:
        position = (position[0] + _STEPS[heading][0], position[1] + _STEPS[heading][1])
        if position == start:
            return np.array([*found, start], np.float64) - 1
        left, right = (padded[_ahead(position, heading, left=side)] for side in (True, False))
        turn = 1 if not right else -1 if left else 0
        if turn:
            found.append(position)
        heading = (heading + turn) % 4


def _ahead(corner: tuple[int, int], heading: int, *, left: bool) -> tuple[int, int]:
    """The pixel that lies before a corner, on the left or the right of the way."""
    row, column = corner
    return ((row - left, column), (row, column - 1 + left), (row - 1 + left, column - 1), (row - 1, column - left))[
        heading
    ]
