"""What every file format gives the decoder: a header and frames, checked against the limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.geometry import Geometry, Grid
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.schema import HEADER
from cluster.counting import counted

# [rows, columns] or [rows, columns, 3] in [0, 1], 1 = white.
Pixels = npt.NDArray[np.floating[Any]]


class Shown(NamedTuple):
    """Frame `number` of a picture; `grid` tells how its pixels lie over the whole frame, None where they are all."""

    number: int
    pixels: Pixels
    grid: Grid | None = None


Numbered = Iterator[Shown]


class Picture(Protocol):
    """One object's picture: `header` by schema.HEADER, and `frames`, the number of frames it announces.

    `remarks` grows while it is read: what its row says of it although it was scored.
    """

    header: dict[str, object]
    frames: int
    remarks: set[str]

    def reduction(self, policy: PixelPolicy) -> int:
        """The factor, a power of two, by which `read` reduces frames under the policy; 1 where it reads them whole."""

    def read(self, policy: PixelPolicy, only: int | None = None) -> Numbered:
        """Yield each frame, in order: pixels [rows, columns] or [rows, columns, 3] in [0, 1].

        Only frame `only`, if given.
        Nothing of a frame is kept once the next is asked for.
        """


def empty_header(**known: object) -> dict[str, object]:
    """A header with every key of schema.HEADER, null but for `known`."""
    return {**dict.fromkeys(HEADER.names), **known}


def check_size(rows: int, columns: int, limits: Limits) -> None:
    """Raise ImageError if a frame of this size has no pixels, or more than the limit."""
    if rows < 1 or columns < 1:
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"a frame of {rows} x {columns} has no pixels")
    if rows * columns > limits.max_pixels:
        detail = f"{rows} x {columns} = {rows * columns} pixels a frame, over max_pixels {limits.max_pixels}"
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, detail)


def check_frames(frames: int, limits: Limits) -> None:
    """Raise ImageError if an object announces more frames than the limit."""
    if frames > limits.max_frames:
        raise ImageError(ErrorCode.TOO_MANY_FRAMES, f"{frames} frames, over max_frames {limits.max_frames}")


def check_input(frames: int, size: tuple[Any, Any], policies: Sequence[PixelPolicy], limits: Limits) -> None:
    """Raise ImageError if the frames of an object, small as they may be, are too much at the input's size.

    `size` is the rows and columns of a frame, where they are known: 1 is taken for what is not, and of frames that are
    cut into tiles that is one tile.
    """
    rows, columns = (side or 1 for side in size)
    input_pixels = frames * sum(prod(Geometry.of(policy, rows, columns).size_px) for policy in policies)
    check_input_pixels(frames, input_pixels, limits)


def check_input_pixels(frames: int, input_pixels: int, limits: Limits) -> None:
    """Raise ImageError if so many frames have too many pixels together at the input's size.

    One frame alone has too many pixels; of several there are too many.
    """
    if input_pixels > limits.max_input_pixels:
        code = ErrorCode.TOO_MANY_PIXELS if frames == 1 else ErrorCode.TOO_MANY_FRAMES
        what = "" if frames == 1 else f"{counted(frames, 'frame')}, "
        at = "at the input's size, or as they are cut into tiles"
        raise ImageError(code, f"{what}{input_pixels} pixels {at}, over max_input_pixels {limits.max_input_pixels}")


def check_samples(rows: int, columns: int, components: int, limits: Limits) -> None:
    """Raise ImageError if the samples of a code stream, at four bytes each as decoders have them, cannot fit."""
    needed = 4 * rows * columns * components
    if needed > limits.max_memory_bytes:
        # The figure stands behind it as behind whatever else does not fit: `guard`.
        raise ImageError(ErrorCode.TOO_MUCH_MEMORY, f"{rows} x {columns} x {components} samples take {needed} bytes")


def check_finite(values: npt.NDArray[Any], frame: int) -> None:
    """Raise ImageError if any value is NaN or infinite."""
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        detail = f"frame {frame}: {bad} of {values.size} values are NaN or infinite"
        raise ImageError(ErrorCode.NON_FINITE_PIXELS, detail)
