"""Small fitted models with what `fuse` asks of a fit: a source, what was held out, and its first calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectorkit import batches, run_fit
from scankit import png

from ad_jobs.archive.sources import read_source
from ad_jobs.fitting import synthetic
from ad_jobs.fitting.split import split_by_group
from ad_jobs.images.domain import Domain, DomainFile
from ad_jobs.images.model_input import to_input
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scoring.calibration import Calibrated, calibrate_on
from ad_jobs.scoring.frames import frames_of
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import publish
from cluster import storage
from models import registry
from models.detector import Detector, InputSpec

# Of padim, without a download.
RANDOM = {"backbone": "resnet18", "weights": "random", "layers": (2, 3), "dims": 16}


def normals(folder: str, count: int = 24) -> str:
    """Pictures of waves, each of its own, in a folder, local or on S3."""
    for number in range(count):
        storage.write_bytes(storage.join(folder, f"{number:02}.png"), png(number))
    return folder


def fitted(
    out: str,
    normal: str,
    kind: str = "linear",
    size_px: int = 32,
    *,
    seed: int = 0,
    domain: Domain | None = None,
    options: dict[str, Any] | None = None,
    **changed: Any,
) -> str:
    """A model in `out`, fitted on a source as `fit` does, its domain and policy `changed` where they are to differ."""
    channels = 1 if registry.entry(kind).takes_grey else 3
    policy = PixelPolicy(channels=channels, height_px=size_px, width_px=size_px, **changed)
    found = list(frames_of(read_source(normal), policy, Limits(), Domain(), "the fit"))
    fit_on, held = split_by_group([one.group for one in found], seed, share=0.25)
    torch.manual_seed(seed)
    spec = InputSpec(channels=channels, height_px=size_px, width_px=size_px)
    detector = registry.create(kind, registry.configure(kind, options or {}), spec)
    images = torch.from_numpy(np.stack([to_input(one.pixels, channels) for one in found]))
    run_fit(detector, batches(images[fit_on], 8), batches(images[held], 8))
    return published(out, kind, detector, policy, [found[n] for n in held], normal, seed, domain)


def published(
    out: str,
    kind: str,
    detector: Detector,
    policy: PixelPolicy,
    held_out: list[HeldOut],
    normal: str,
    seed: int,
    domain: Domain | None = None,
) -> str:
    """A fitted detector as a model, with its first calibration."""
    frames = sorted(f"{one.object}/{one.frame}" for one in held_out)
    digest = hashlib.sha256("\n".join(frames).encode()).hexdigest()
    data = {"normal": normal, "n_fitted": 0, "n_held_out": len(frames), "held_out_sha256": digest}
    record = {"seed": seed, "fitted_at": "2024-02-29T12:00:00+00:00", "data": data}
    accepts = DomainFile(accepts=domain or Domain())

    def calibrated(model_id: str) -> Calibrated:
        return calibrate_on(detector, held_out, model_id=model_id, source=normal, max_fpr=0.1)

    publish(out, kind, detector, policy, record, accepts, calibrated)
    return out


def pair(folder: Path, normal: str) -> list[str]:
    """A grey model of 32 px, and one in colour of 64."""
    return [fitted(str(folder / "linear"), normal), fitted(str(folder / "padim"), normal, "padim", 64, options=RANDOM)]


@contextmanager
def few_defects() -> Iterator[None]:
    """Held-out images get one defect of each kind, and no more rounds of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "FRAMES", 8)
        yield
