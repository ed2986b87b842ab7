"""Detectors of any kind at small sizes, and their learners driven by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import registry
from models.detector import Batch, Detector, InputSpec, Learner
from models.runtime import Runtime


def build(kind: str, size_px: tuple[int, int] = (32, 48), **options: Any) -> Detector:
    """A new detector in eval mode, drawn from torch's generator as it stands."""
    entry = registry.entry(kind)
    spec = InputSpec(
        channels=entry.channels, height_px=size_px[0], width_px=size_px[1], needs_anomalous=entry.needs_anomalous
    )
    return registry.create(kind, registry.configure(kind, options), spec).eval()


def batches(images: Tensor, size: int, anomalous: Tensor | None = None) -> list[Batch]:
    index = torch.arange(len(images))
    return [
        Batch(images[i : i + size], index[i : i + size], None if anomalous is None else anomalous[i : i + size])
        for i in range(0, len(images), size)
    ]


def run_phase(learner: Learner, name: str, data: list[Batch], epochs: int | None = None) -> list[dict[str, float]]:
    """One phase from start to finish; what every step reported."""
    (phase,) = (phase for phase in learner.phases if phase.name == name)
    learner.start(name)
    found = []
    for _ in range(phase.epochs if epochs is None else epochs):
        found += [{key: float(value) for key, value in learner.step(batch).items()} for batch in data]
        learner.end_epoch()
    learner.finish(name)
    return found


def run_fit(detector: Detector, data: list[Batch], held_out: list[Batch], seed: int = 0) -> list[dict[str, float]]:
    """A whole fit; what every step reported."""
    learner = detector.learner(Runtime(seed=seed))
    found = []
    for phase in learner.phases:
        found += run_phase(learner, phase.name, held_out if phase.images == "held_out" else data)
    detector.eval()
    return found


def numpy_weights(network: nn.Module, rng: np.random.Generator) -> None:
    """Weights that no library's initialisation decides: He-scaled from numpy, biases zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                scale = (2 / np.prod(parameter.shape[1:])) ** 0.5
                values = scale * rng.standard_normal(tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(values.astype(np.float32)))
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and layer.bias is not None:
                layer.bias.zero_()
