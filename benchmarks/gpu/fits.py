"""Fits and judgements in one process: what the verbs do, without Ray."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ad_jobs.evaluation.ranking import auroc, average_precision, histograms
from ad_jobs.fitting.loop import Batches, train
from ad_jobs.fitting.split import split_by_group
from ad_jobs.schema import is_flagged
from ad_jobs.scoring.devices import Cpu, Cuda, Device
from ad_jobs.scoring.scorer import Scorer
from ad_jobs.scoring.thresholds import threshold_for_fpr
from benchmarks.gpu.pictures import Pictures
from models import registry
from models.detector import Batch, Detector, InputSpec, Learner
from models.runtime import Runtime

SEED = 0
MAX_FPR = 0.05


def create(kind: str, size_px: int, options: dict[str, Any], weights: str) -> Detector:
    """A new detector, seeded, whose backbone (if it has one) takes its weights from this file."""
    torch.manual_seed(SEED)
    entry = registry.entry(kind)
    if "weights" in entry.config_class().model_fields:
        options = {**options, "weights": weights}
    spec = InputSpec(
        channels=entry.channels, height_px=size_px, width_px=size_px, needs_anomalous=entry.needs_anomalous
    )
    return registry.create(kind, registry.configure(kind, options), spec)


def short(kind: str, epochs: int) -> dict[str, Any]:
    """Options by which every training phase of a fit has so many epochs."""
    config = registry.configure(kind, {})
    known = type(config).model_fields
    return {name: epochs for name in ("epochs", "align_epochs") if name in known and config.counts(name)}


@dataclass(frozen=True)
class Fit:
    """How long a fit took, and which positions of its images were held out."""

    seconds: float
    held_out: list[int]
    fitted_on: int
    # Of every phase, the seconds of each of its epochs.
    epoch_s: dict[str, list[float]]


def fit(detector: Detector, device: str, images: Pictures) -> Fit:
    """Fit in place, on the normal images of `images`, and on the anomalous ones where the detector needs them."""
    normal = [position for position, anomalous in enumerate(images.anomalous) if not anomalous]
    partners = np.flatnonzero(images.anomalous).tolist() if detector.spec.needs_anomalous else []
    fitted, held = split_by_group([images.group[position] for position in normal], SEED)
    positions = {"train": [normal[n] for n in fitted], "held_out": [normal[n] for n in held]}
    runtime = Runtime(device=torch.device(device), seed=SEED)
    learner = detector.learner(runtime)
    batches = _Timed(detector, runtime, images, positions, images if partners else None, partners)
    batches.watch(learner)
    # Torch's own setting, in which the product fits; a scorer in this process turned it off.
    torch.backends.cudnn.allow_tf32 = True
    synchronize(device)
    start = time.perf_counter()
    train(detector, learner, batches, save=lambda _: None, say=lambda _: None)
    synchronize(device)
    seconds = time.perf_counter() - start
    return Fit(seconds, positions["held_out"], len(fitted), batches.seconds)


class _Timed(Batches):
    """Batches that note how long each epoch took until the next one or the end of its phase."""

    seconds: dict[str, list[float]]

    def watch(self, learner: Learner) -> None:
        self.seconds = {}
        self._phases = learner.phases

    def epoch(self, phase: int, epoch: int, images: str) -> Generator[Batch, None, None]:
        start = time.perf_counter()
        yield from super().epoch(phase, epoch, images)
        # The last step was begun, not ended.
        synchronize(self._runtime.device.type)
        self.seconds.setdefault(self._phases[phase].name, []).append(time.perf_counter() - start)


def device_of(name: str) -> Device:
    """Where the product would run."""
    return Cuda() if name == "cuda" else Cpu()


def synchronize(device: str) -> None:
    """Wait for what was begun on the card."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Scored:
    """Scores [N] and heatmaps [N, H, W] in order."""

    scores: NDArray[np.float64]
    heatmaps: NDArray[np.float32] = field(repr=False)
    finite: bool


def score(detector: Detector, device: str, images: Pictures, *, batch_size: int = 32, amp: bool = False) -> Scored:
    """What the product's scorer says of all images; `detector` stays where it is."""
    scorer = Scorer(copy.deepcopy(detector), batch_size=batch_size, amp=amp, device=device_of(device))
    frames = list(scorer.score(images.pixels))
    return Scored(
        np.array([frame.score for frame in frames]),
        np.stack([frame.heatmap for frame in frames]),
        all(frame.finite for frame in frames),
    )


def judged(detector: Detector, device: str, fitted: Pictures, held_out: list[int], test: Pictures) -> dict[str, Any]:
    """Image metrics on `test`, and what a threshold for 5 % false positives from the held-out normals does there."""
    start = time.perf_counter()
    scores = score(detector, device, test).scores
    seconds = time.perf_counter() - start
    calm = Pictures(list(fitted.read(held_out)), np.zeros(len(held_out), np.bool_), [""] * len(held_out))
    threshold = threshold_for_fpr(score(detector, device, calm).scores.astype(np.float32), MAX_FPR).threshold
    flagged = is_flagged(scores.astype(np.float32), threshold)
    counts = histograms(scores, test.anomalous)
    return {
        "auroc": auroc(counts),
        "ap": average_precision(counts),
        "sensitivity": float(flagged[test.anomalous].mean()),
        "fpr": float(flagged[~test.anomalous].mean()),
        "held_out": len(held_out),
        "test": len(scores),
        "score_s": seconds,
    }
