"""From frames to scores: the one place where a detector runs, so that every verb computes the same number."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ad_jobs.fetching import Source, fetch_all, prepare
from ad_jobs.images.decode import to_input
from models.detector import Detector

# The way of an image from its URI to its score, for verbs that walk all of it in one process.
__all__ = ["FrameScore", "Scorer", "Source", "fetch_all", "prepare"]


class FrameScore(NamedTuple):
    """One frame's raw score and heatmap float32 [H, W]; the time is its share of its batch."""

    score: float
    heatmap: NDArray[np.float32]
    finite: bool
    score_ms: float


class Scorer:
    """A detector on the best device at hand, in the numeric mode in which every verb's scores agree.

    float32 throughout: neither autocast nor TF32, because a score must be the same within 1e-5 wherever it is
    computed again.
    """

    def __init__(self, detector: Detector, *, batch_size: int = 32, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.batch_size = batch_size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._detector = detector.eval().to(self._device)
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
            self._detector = self._detector.to(memory_format=torch.channels_last)

    def score(self, pixels: Iterable[NDArray[np.uint16]]) -> Iterator[FrameScore]:
        """One FrameScore for each uint16 [c, h, w] of `pixels`, in order, scored in batches."""
        batch: list[NDArray[np.uint16]] = []
        for frame in pixels:
            batch.append(frame)
            if len(batch) == self.batch_size:
                yield from self._score(batch)
                batch = []
        if batch:
            yield from self._score(batch)

    def _score(self, batch: list[NDArray[np.uint16]]) -> list[FrameScore]:
        start = time.perf_counter()
        channels = self._detector.spec.channels
        images = torch.from_numpy(np.stack([to_input(frame, channels) for frame in batch]))
        if self._device.type == "cuda":
            images = images.pin_memory().to(
                self._device, non_blocking=True, memory_format=torch.channels_last
            )
        # Called plainly: the detector owns its grad mode, and some take a gradient to draw their heatmap.
        found = self._detector.score(images)
        scores = found.image.detach().float().cpu().numpy()
        heatmaps = found.heatmap.detach().float().cpu().numpy()
        share = 1e3 * (time.perf_counter() - start) / len(batch)
        return [
            FrameScore(float(score), heatmap, bool(np.isfinite(score) and np.isfinite(heatmap).all()), share)
            for score, heatmap in zip(scores, heatmaps, strict=True)
        ]
