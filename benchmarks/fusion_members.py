"""The members that benchmarks/fusion.py fuses: fitted once a data set and seed, and kept as models.

They are fitted in this process, by the loop of `retroscan fit` on the same images and with the same ones held out.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ad_jobs.fitting.loop import Batches, train
from ad_jobs.images.domain import DomainFile
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import versions
from ad_jobs.scoring.calibration import Calibrated, calibrate_on
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import publish
from benchmarks.held_out import Decoded, decoded, split
from models import registry
from models.detector import Detector, InputSpec
from models.runtime import Runtime

BAD = "bad"
# Kind, and options that are not the preset's; the bad one learns next to nothing.
MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "padim": ("padim", {}),
    "knn": ("knn", {}),
    "mkd": ("mkd", {}),
    BAD: ("autoencoder", {"epochs": 1}),
}


class _Stack:
    """Decoded images, as a fit reads them."""

    def __init__(self, images: Sequence[Decoded]) -> None:
        self._images = images

    def read(self, positions: Sequence[int]) -> Iterator[NDArray[Any]]:
        return (self._images[position].pixels for position in positions)


def member(name: str, normal: str, seed: int, folder: Path) -> str:
    """The model of MEMBERS by this name, in its folder; fitted on the source `normal` where it is not there."""
    if (folder / "calibration.json").exists():
        return str(folder)
    kind, options = MEMBERS[name]
    entry, preset = registry.entry(kind), registry.preset(kind, "fast")
    height, width = preset.size_px
    policy = PixelPolicy(channels=3, height_px=height, width_px=width)
    images = decoded(normal, policy, Limits())
    grey = entry.takes_grey and all(len(image.pixels) == 1 for image in images)
    policy = policy.model_copy(update={"channels": 1 if grey else 3})
    torch.manual_seed(seed)
    spec = InputSpec(channels=policy.channels, height_px=height, width_px=width)
    detector = registry.create(kind, registry.configure(kind, {**preset.options, **options}), spec)
    fit_on, held_out = split(images, seed)
    start = time.perf_counter()
    positions = {"train": list(range(len(fit_on))), "held_out": list(range(len(fit_on), len(images)))}
    runtime = Runtime(seed=seed)
    batches = Batches(detector, runtime, _Stack(fit_on + held_out), positions)
    train(detector, detector.learner(runtime), batches, save=lambda _: None, say=lambda _: None)
    keep(detector.eval(), kind, policy, held_out, normal, seed, str(folder), time.perf_counter() - start, len(fit_on))
    return str(folder)


def keep(
    detector: Detector,
    kind: str,
    policy: PixelPolicy,
    held_out: Sequence[Decoded],
    normal: str,
    seed: int,
    out: str,
    seconds: float,
    fitted_on: int,
) -> None:
    """Write a fitted detector as a model, with what `fuse` asks of its record."""
    found = [HeldOut(image.pixels, _sha256(image.uri), image.frame, image.group) for image in held_out]
    frames = sorted(f"{one.object}/{one.frame}" for one in found)
    record = {
        "seed": seed,
        "versions": versions(),
        "seconds": round(seconds, 1),
        "limits": Limits().model_dump(),
        "fitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "normal": normal,
            "n_fitted": fitted_on,
            "n_held_out": len(found),
            "held_out_sha256": hashlib.sha256("\n".join(frames).encode()).hexdigest(),
        },
    }

    def calibrated(model_id: str) -> Calibrated:
        return calibrate_on(detector, found, model_id=model_id, source=normal, max_fpr=0.01)

    publish(out, kind, detector, policy, record, DomainFile(), calibrated)


def _sha256(uri: str) -> str:
    return hashlib.sha256(Path(uri.removeprefix("file://")).read_bytes()).hexdigest()
