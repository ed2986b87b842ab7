"""The rule of the contract for frames that are cut: a detector of any kind scores them in tiles of its input's size."""

from __future__ import annotations

import numpy as np
from contract.given import fitted, images
from contract.maker import SIZE_PX, Maker
from contract.scores import HEAT_TOLERANCE
from numpy.typing import NDArray

from ad_jobs.images.policy import Tiles
from ad_jobs.scoring.devices import Cpu
from ad_jobs.scoring.scorer import FrameScore, Scorer
from models.detector import Detector

OVERLAP_PX = 8
# One tile, a pixel more each way, and one that is long.
SIZES_PX = (SIZE_PX, (SIZE_PX[0] + 1, SIZE_PX[1] + 1), (SIZE_PX[0], 2 * SIZE_PX[1]))


def check_frames_are_scored_in_tiles(make: Maker) -> None:
    """One that is a tile as ever, any other as large as it is, and each the same whatever lies beside it."""
    detector = fitted(make)
    frames = [_pixels(make, size_px) for size_px in SIZES_PX]
    found = _scored(detector, frames)
    for frame, one in zip(frames, found, strict=True):
        assert one.finite, "a frame in tiles must have a finite score"
        assert one.heatmap.shape == frame.shape[1:], "the heatmap of a frame in tiles must be as large as the frame"
    (alone,) = Scorer(detector, device=Cpu()).score(frames[:1])
    _demand_alike(found[0], alone, "a frame of one tile must have the tile's score")
    for one, other in zip(_scored(detector, frames[::-1])[::-1], found, strict=True):
        _demand_alike(one, other, "a frame's score must not depend on the tiles of others")


def _pixels(make: Maker, size_px: tuple[int, int]) -> NDArray[np.uint16]:
    (image,) = images(1, make, size_px)
    return np.rint(65535 * image.numpy()).astype(np.uint16)


def _scored(detector: Detector, frames: list[NDArray[np.uint16]]) -> list[FrameScore]:
    # Fewer at once than any of the larger frames has.
    return list(Scorer(detector, tiles=Tiles(overlap_px=OVERLAP_PX), batch_size=3, device=Cpu()).score(frames))


def _demand_alike(one: FrameScore, other: FrameScore, what: str) -> None:
    assert abs(one.score - other.score) <= HEAT_TOLERANCE * abs(other.score), what
    assert np.abs(one.heatmap - other.heatmap).max() <= HEAT_TOLERANCE * np.abs(other.heatmap).max(), what
