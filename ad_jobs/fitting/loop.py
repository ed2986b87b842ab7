"""The training of one worker: phase after phase over its share of the images, from a state to the next. No Ray here."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ad_jobs.fitting.split import pair
from ad_jobs.images.model_input import to_input
from models.detector import Batch, Detector, Learner, Phase
from models.runtime import Runtime

# Over a whole fit.
CHECKPOINTS = 10

# Of a fit between two epochs: what a checkpoint holds, the same on every rank.
State = dict[str, Any]


class Images(Protocol):
    """Decoded images by position."""

    def read(self, positions: Sequence[int]) -> Iterator[NDArray[np.uint16]]:
        """The images at `positions` in this order, uint16 [c, H, W]."""
        ...


# Of positions, an order of their places drawn by a generator.
Shuffle = Callable[[Sequence[int], np.random.Generator], NDArray[np.int64]]


def evenly(positions: Sequence[int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Any order as likely as any other."""
    return rng.permutation(len(positions))


class Batches:
    """The global batches of an epoch in an order drawn by seed, the same on every rank; of each, this rank's share."""

    def __init__(
        self,
        detector: Detector,
        runtime: Runtime,
        normal: Images,
        positions: dict[str, list[int]],
        anomalous: Images | None = None,
        anomalous_positions: Sequence[int] = (),
        shuffle: Shuffle = evenly,
    ) -> None:
        """Of the normal images, `positions` names those to train on (`train`) and those held out (`held_out`).

        `shuffle` orders the normal images of an epoch without anomalous ones.
        """
        self._spec, self._batch_size, self._runtime = detector.spec, detector.config.batch_size, runtime
        self._normal, self._positions = normal, positions
        self._anomalous, self._partners = anomalous, anomalous_positions
        self._shuffle = shuffle

    def epoch(self, phase: int, epoch: int, images: str) -> Generator[Batch, None, None]:
        """All batches of one epoch of the phase with this number; a share of the last one may be empty."""
        rng = np.random.default_rng((self._runtime.seed, phase, epoch))
        chosen = self._positions[images]
        paired = self._anomalous if images == "train" else None
        partners: NDArray[np.int64] | None = None
        if paired is None:
            order = self._shuffle(chosen, rng)
        else:
            order, partners = pair(len(chosen), len(self._partners), rng)
        shares = [
            range(first + self._runtime.rank, min(first + self._batch_size, len(order)), self._runtime.world)
            for first in range(0, len(order), self._batch_size)
        ]
        mine = [row for share in shares for row in share]
        normal = self._normal.read([chosen[order[row]] for row in mine])
        anomalous: Iterator[NDArray[np.uint16]] = iter(())
        if paired is not None and partners is not None:
            anomalous = paired.read([self._partners[partners[row]] for row in mine])
        for number, share in enumerate(shares):
            total = min(self._batch_size, len(order) - number * self._batch_size)
            yield Batch(
                self._stack(islice(normal, len(share))),
                torch.from_numpy(order[list(share)].astype(np.int64)),
                None if paired is None else self._stack(islice(anomalous, len(share))),
                total,
            )

    def _stack(self, images: Iterator[NDArray[np.uint16]]) -> torch.Tensor:
        rows = [to_input(pixels, self._spec.channels) for pixels in images]
        size = (self._spec.channels, self._spec.height_px, self._spec.width_px)
        stacked = torch.from_numpy(np.stack(rows) if rows else np.empty((0, *size), np.float32))
        # From pinned memory the copy to a GPU goes on beside the step.
        return stacked.pin_memory() if self._runtime.device.type == "cuda" else stacked


def train(
    detector: Detector,
    learner: Learner,
    batches: Batches,
    *,
    save: Callable[[State], None],
    say: Callable[[str], None],
    state: State | None = None,
) -> None:
    """Fit `detector` in place by its learner, from the beginning or from a state that was saved.

    Args:
        detector: what the learner fits.
        learner: new.
        batches: the images.
        save: takes the state some ten times on the way, and last with the fitted detector in `detector`.
        say: takes a line for the user now and then.
        state: where to go on.
    """
    curve: list[dict[str, Any]] = state["curve"] if state else []
    reached = state["phase"] if state else 0
    # It had ended; what came after it was interrupted.
    if state and reached == len(learner.phases):
        say("Continued from the end of the training.")
        save(state)
        return
    every = max(1, math.ceil(sum(phase.epochs for phase in learner.phases) / CHECKPOINTS))
    for number, phase in enumerate(learner.phases[reached:], start=reached):
        first = 0
        learner.start(phase.name)
        if state is not None:
            learner.load_state_dict(state["learner"])
            first, state = state["epoch"], None
            say(f"Continued from epoch {first} of {phase.epochs} ({phase.name}).")
        for epoch in range(first, phase.epochs):
            losses = _epoch(learner, batches, number, epoch, phase)
            curve.append({"phase": phase.name, "epoch": epoch + 1, **losses})
            due = (epoch + 1) % every == 0
            if losses and (epoch == 0 or due):
                shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
                say(f"{phase.name}, epoch {epoch + 1} of {phase.epochs}: {shown}")
            if due and epoch + 1 < phase.epochs:
                save(_state(learner.state_dict(), number, epoch + 1, curve))
        learner.finish(phase.name)
    save(_state({}, len(learner.phases), 0, curve, detector.state_dict()))


def _epoch(learner: Learner, batches: Batches, number: int, epoch: int, phase: Phase) -> dict[str, float]:
    """One epoch; the mean of each loss over its steps."""
    losses: dict[str, list[torch.Tensor]] = {}
    with closing(batches.epoch(number, epoch, phase.images)) as data:
        for batch in data:
            for name, value in learner.step(batch).items():
                losses.setdefault(name, []).append(value)
    learner.end_epoch()
    return {name: float(torch.stack(values).mean()) for name, values in losses.items()}


def _state(
    learner: dict[str, Any],
    phase: int,
    epoch: int,
    curve: list[dict[str, Any]],
    detector: dict[str, torch.Tensor] | None = None,
) -> State:
    """A state in which `epoch` epochs of phase number `phase` are done.

    Where the number is beyond the last, all is done, and `detector` is the fitted one.
    """
    return {"learner": learner, "phase": phase, "epoch": epoch, "curve": curve, "detector": detector}
