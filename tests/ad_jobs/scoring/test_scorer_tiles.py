"""Frames of any size, scored in tiles: what is found is the frame's, and memory is that of a batch of tiles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from detectorkit import build
from numpy.typing import NDArray
from torch import Tensor

from ad_jobs.images.policy import Tiles
from ad_jobs.images.tiling import Tiling
from ad_jobs.scoring.devices import Cpu
from ad_jobs.scoring.scorer import FrameScore, Scorer
from ad_jobs.scoring.tolerances import HEATMAP_SHARE
from models.detector import Detector, InputSpec, Scores

TILE, OVERLAP = (32, 48), 8
SIZES = [(32, 48), (70, 49), (33, 200), (100, 100)]


def frames(sizes: list[tuple[int, int]] = SIZES) -> list[NDArray[np.uint16]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 65536, (1, *size)).astype(np.uint16) for size in sizes]


@pytest.fixture(scope="module")
def detector() -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = build("knn", TILE, weights="random", items=64)
        found.memory.items.normal_()
        return found


def scored(detector: Detector, pixels: list[NDArray[np.uint16]], batch_size: int = 8) -> list[FrameScore]:
    return list(Scorer(detector, tiles=Tiles(overlap_px=OVERLAP), batch_size=batch_size, device=Cpu()).score(pixels))


def test_a_frame_of_one_tile_has_the_tiles_numbers(detector: Detector) -> None:
    (found,) = scored(detector, frames(SIZES[:1]))
    (expected,) = Scorer(detector, device=Cpu()).score(frames(SIZES[:1]))
    assert found._replace(heatmap=None, score_ms=0) == expected._replace(heatmap=None, score_ms=0)
    np.testing.assert_array_equal(found.heatmap, expected.heatmap)


def test_a_frame_is_as_hot_as_the_tiles_over_a_pixel_and_scores_as_its_hottest(detector: Detector) -> None:
    tiling = Tiling(*TILE, OVERLAP)
    for frame, found in zip(frames(), scored(detector, frames()), strict=True):
        corners = tiling.corners(*frame.shape[1:])
        alone = list(Scorer(detector, device=Cpu()).score(tiling.cut(frame, corner) for corner in corners))
        assert found.score == found.heatmap.max() <= max(one.score for one in alone) * (1 + 1e-5)
        assert found.heatmap.shape == frame.shape[1:]
        low, high = np.full(frame.shape[1:], np.inf), np.zeros(frame.shape[1:])
        for corner, one in zip(corners, alone, strict=True):
            for bound, of in ((low, np.minimum), (high, np.maximum)):
                place = tiling.cut(bound, corner)
                of(place, one.heatmap, out=place)
        slack = HEATMAP_SHARE * found.score
        assert ((low - slack <= found.heatmap) & (found.heatmap <= high + slack)).all()


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_neither_batches_nor_the_order_of_frames_change_a_heatmap(detector: Detector, batch_size: int) -> None:
    expected = scored(detector, frames())
    found = scored(detector, frames()[::-1], batch_size)[::-1]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-5)
        assert np.abs(one.heatmap - other.heatmap).max() <= HEATMAP_SHARE * other.heatmap.max()


class Flat(Detector):
    """Every pixel is as hot as it is bright; counts the images it is given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = InputSpec(channels=1, height_px=256, width_px=256)
        self.largest = 0

    def score(self, images: Tensor) -> Scores:
        self.largest = max(self.largest, len(images))
        return Scores(images.flatten(1).amax(1), images[:, 0])

    learner = None


@pytest.mark.parametrize("size", [(4096, 256), (256, 4096), (2048, 2048)])
def test_large_frames_take_a_batch_of_tiles_and_come_one_by_one(size: tuple[int, int]) -> None:
    flat, under_way = Flat(), 0

    def given() -> Iterator[NDArray[np.uint16]]:
        nonlocal under_way
        for frame in frames([size] * 3):
            under_way += 1
            assert under_way <= 2, "a frame is asked for once the one before is in its last batch"
            yield frame

    scorer = Scorer(flat, tiles=Tiles(overlap_px=32), batch_size=8, device=Cpu())
    for frame, found in zip(frames([size] * 3), scorer.score(given()), strict=True):
        np.testing.assert_allclose(found.heatmap, np.divide(frame[0], 65535, dtype=np.float32), rtol=1e-5)
        assert found.score == found.heatmap.max()
        under_way -= 1
    assert flat.largest == 8


def test_a_tile_that_is_not_finite_marks_its_frame_alone() -> None:
    class Broken(Flat):
        def score(self, images: Tensor) -> Scores:
            score, heatmap = super().score(images)
            return Scores(torch.where(score == 1.0, torch.nan, score), heatmap)

    dark = np.zeros((1, 300, 300), np.uint16)
    bright = dark.copy()
    bright[0, 299, 299] = 65535
    found = Scorer(Broken(), tiles=Tiles(overlap_px=32), device=Cpu()).score([dark, bright, dark])
    assert [one.finite for one in found] == [True, False, True]
