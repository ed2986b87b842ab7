"""Detectors judged by synthetic defects in normal images that none of them was fitted on.

It is all that can be had where no anomalous image is known, and it never sees one.
Shape suffixes: N normal images, D of them with a defect, K kinds of defects, M detectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from ad_jobs.errors import JobError
from ad_jobs.fitting.defects import KINDS, Image, defective
from ad_jobs.images.model_input import FULL_SCALE
from ad_jobs.images.policy import Tiles
from ad_jobs.scoring.scorer import Scorer
from models.detector import Detector, InputSpec
from models.parts.resample import as_input

# Held-out images that are judged by; of fewer, each gets several defects of a kind, so that they are about as many.
FRAMES = 128

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """What each detector scored, of normal images and of the same with defects."""

    kinds: tuple[str, ...]
    # [N, M]
    normal: Array
    # [D, K, M], image by image, of each as many as of every other: D is a multiple of N.
    defective: Array

    @classmethod
    def together(cls, judged: Sequence[Judged]) -> Judged:
        """The same of all detectors of several, which were judged by the same frames and defects."""
        return cls(
            judged[0].kinds,
            np.concatenate([one.normal for one in judged], axis=1),
            np.concatenate([one.defective for one in judged], axis=2),
        )

    def auroc(self) -> Array:
        """Of every kind of defect and detector, [K, M]: how often a defective image scores above a normal one.

        Ties count half.
        """
        return _auroc(self.normal, self.defective)

    def found(self) -> Array:
        """Of every detector the mean of its AUROC over the kinds, [M]."""
        found: Array = self.auroc().mean(0)
        return found

    def fused(self, weights: Sequence[float]) -> Judged:
        """The same of one detector, whose score is the sum of the others' z-scores, weighted by `weights` [M].

        A z-score counts from the mean of the detector's normal scores, in their standard deviations.

        Raises:
            JobError: a detector that counts scores all normal images alike.
        """
        share = np.asarray(weights, np.float64)
        spread = self.normal.std(0)
        if (spread[share != 0] == 0).any():
            raise JobError(
                "A detector that scores all held-out normal images alike has no z-scores.",
                "Leave it out of the fusion.",
            )
        factor = np.divide(share, spread, out=np.zeros_like(share), where=share != 0)
        mean = self.normal.mean(0)
        return Judged(
            self.kinds, ((self.normal - mean) @ factor)[:, None], ((self.defective - mean) @ factor)[:, :, None]
        )


def judge(
    detectors: Sequence[Detector], frames: Iterable[NDArray[np.uint16]], *, seed: int, tiles: Tiles | None = None
) -> Judged:
    """What each detector scores of normal frames, as they are and with a defect of every kind.

    Args:
        detectors: fitted, on other images than these; of any sizes.
        frames: normal, uint16 [c, H, W] with 1 or 3 channels, under the largest size among the detectors; the first
            128 are judged by. A detector of another size is given them resampled by area.
            With `tiles` they are of any size, and all detectors of a tile's.
        seed: draws the defects, with a frame's place among the frames: the same for every detector.
        tiles: how frames are cut, if they are.

    Raises:
        JobError: there is no frame, or a score that is not finite.
    """
    stored = list(islice(frames, FRAMES))
    if not stored:
        raise JobError("Detectors are judged on normal images that were held out. Got: none.", "Fit on more images.")
    rounds = max(1, FRAMES // len(stored))
    scorers = [Scorer(detector, tiles=tiles) for detector in detectors]
    scores = []
    for place, frame in enumerate(stored):
        image = np.divide(frame, FULL_SCALE, dtype=np.float32)
        of_frame = []
        for scorer, detector in zip(scorers, detectors, strict=True):
            # Drawn again for each, the same: kept, they would be hundreds of whole images.
            images = _with_defects(image, rounds, (seed, place))
            seen = _seen(images, detector.spec, whole=tiles is not None)
            of_frame.append([one.score for one in scorer.score(seen)])
        scores.append(of_frame)
    # [N, 1 + rounds * K, M]
    found = np.array(scores, np.float64).swapaxes(1, 2)
    if not np.isfinite(found).all():
        raise JobError(
            "A detector gave a score that is not finite on a held-out image.", "Fit it again, or leave it out."
        )
    return Judged(tuple(KINDS), found[:, 0], found[:, 1:].reshape(-1, len(KINDS), len(scorers)))


def _with_defects(image: Image, rounds: int, drawn_by: tuple[int, int]) -> Iterator[Image]:
    """The image as it is, then, round by round, with a defect of every kind."""
    yield image
    for number in range(rounds):
        for order, kind in enumerate(KINDS):
            yield defective(image, kind, np.random.default_rng((*drawn_by, number, order))).image


def _seen(images: Iterable[Image], spec: InputSpec, *, whole: bool) -> Iterator[NDArray[np.uint16]]:
    """The images as a detector of `spec` takes them, in the steps of stored pixels; `whole` ones keep their size."""
    for image in images:
        _, height, width = image.shape
        wanted = spec.model_copy(update={"height_px": height, "width_px": width}) if whole else spec
        resized = as_input(torch.from_numpy(image).unsqueeze(0), wanted)[0]
        yield np.rint(resized.numpy() * FULL_SCALE).astype(np.uint16)


def _auroc(normal: Array, abnormal: Array) -> Array:
    """[K, M] of normal scores [N, M] and of others [D, K, M]."""
    found = np.empty(abnormal.shape[1:])
    for column in range(normal.shape[1]):
        ordered = np.sort(normal[:, column])
        others = abnormal[:, :, column]
        below = np.searchsorted(ordered, others) + np.searchsorted(ordered, others, side="right")
        found[:, column] = below.mean(0) / (2 * len(ordered))
    return found
