"""How the contract suite comes to its detectors, and how it fits them: as the worker of `retroscan fit` does."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.detector import Batch, Detector, InputSpec, Learner, Phase, TrainedConfig
from models.registry import Entry
from models.runtime import Runtime

SIZE_PX = (32, 48)  # never square: swapped sides must show
SEED = 5

State = dict[str, Any]


@dataclass(frozen=True, eq=False)  # a maker is itself alone, and so a key of caches
class Maker:
    """Makes new detectors of one kind: the same call gives the same one, with torch's generator where it left it."""

    entry: Entry
    options: dict[str, Any] = field(default_factory=dict)
    _made: dict[tuple[int, int], tuple[Detector, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, size_px: tuple[int, int] = SIZE_PX) -> Detector:
        """A new detector for images of `size_px` (height, width), drawn after seeding torch as the worker does.

        Reading a backbone takes most of a short fit's time: it is done once a size, and copied.
        """
        if size_px not in self._made:
            torch.manual_seed(SEED)
            self._made[size_px] = (self._draw(size_px), torch.get_rng_state())
        detector, generator = self._made[size_px]
        torch.set_rng_state(generator)
        return copy.deepcopy(detector)

    @property
    def trained(self) -> bool:
        """Whether the kind learns in passes that its configuration counts."""
        return issubclass(self.entry.config_class(), TrainedConfig)

    def _draw(self, size_px: tuple[int, int]) -> Detector:
        spec = InputSpec(
            channels=self.entry.channels,
            height_px=size_px[0],
            width_px=size_px[1],
            needs_anomalous=self.entry.needs_anomalous,
        )
        config = self.entry.config_class().model_validate(self.options)
        return self.entry.detector_class()(config, spec, pretrained=True)


def steps(
    detector: Detector, images: Tensor, number: int, epoch: int, phase: Phase, anomalous: Tensor | None = None
) -> Iterator[Batch]:
    """The batches of one epoch in the worker's order, the last one partial; every fourth image is held out."""
    held_out = torch.arange(len(images)) % 4 == 3
    images = images[held_out if phase.images == "held_out" else ~held_out]
    anomalous = None if phase.images == "held_out" else anomalous
    rng = np.random.default_rng((SEED, number, epoch))
    order = torch.from_numpy(rng.permutation(len(images)))
    for start in range(0, len(order), detector.config.batch_size):
        rows = order[start : start + detector.config.batch_size]
        drawn = None if anomalous is None else anomalous[rng.integers(0, len(anomalous), len(rows))]
        yield Batch(images[rows], rows, drawn)


def fit(
    detector: Detector,
    images: Tensor,
    anomalous: Tensor | None = None,
    *,
    resume: tuple[int, int, bytes] | None = None,
    stop: tuple[int, int] | None = None,
) -> bytes | None:
    """Fit in place by the worker's protocol.

    Args:
        detector: new.
        images: normal images [N, C, H, W].
        anomalous: for a detector whose spec needs them.
        resume: phase number, finished epochs of it, and the state as bytes: continue from there.
        stop: phase number and epoch after which to stop.

    Returns:
        The learner's state at `stop`, as bytes; None after a whole fit.
    """
    learner: Learner = detector.learner(Runtime(seed=SEED))
    for number, phase in enumerate(learner.phases):
        first = 0
        if resume is not None and number < resume[0]:
            continue
        learner.start(phase.name)
        if resume is not None and number == resume[0]:
            # Plain tensors and numbers alone, so that opening a checkpoint runs nothing.
            learner.load_state_dict(torch.load(io.BytesIO(resume[2]), weights_only=True))
            first = resume[1]
        for epoch in range(first, phase.epochs):
            for batch in steps(detector, images, number, epoch, phase, anomalous):
                learner.step(batch)
            learner.end_epoch()
            if stop == (number, epoch + 1):
                buffer = io.BytesIO()
                torch.save(learner.state_dict(), buffer)
                return buffer.getvalue()
        learner.finish(phase.name)
    detector.eval()
    return None
