"""What SSM, PMAD and the plain auto-encoder share: a network that learns to give images back, and what it failed at.

Images are in [0, 1]; networks take and give [-1, 1].

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from models.detector import Batch, Detector, Phase, finite_or_stop
from models.parts.rates import Schedule, set_rate
from models.runtime import Runtime

# Sigma in pixels at a height of 128, with which SSM and the auto-encoder smooth their maps.
SMOOTHING = 7.0
# Numbers that are put through a network at once: on a CPU more gain nothing, and fewer leave it waiting for each layer.
AT_ONCE = 1 << 18

AnyDetector = TypeVar("AnyDetector", bound=Detector)


def rebuild(network: nn.Module, images_BCHW: Tensor) -> Tensor:
    """The images as the network gives them back, in [0, 1]."""
    rebuilt: Tensor = (network(2 * images_BCHW - 1) + 1) / 2
    return rebuilt


def fitting(numbers: int) -> int:
    """How many images go through a network at once, each of so many numbers with all that is made of it."""
    return max(1, AT_ONCE // numbers)


class ReconstructionLearner(ABC, Generic[AnyDetector]):
    """A learner one of whose phases trains a network by Adam; the others measure, by default held-out normals."""

    def __init__(
        self,
        detector: AnyDetector,
        network: nn.Module,
        runtime: Runtime,
        phases: tuple[Phase, ...],
        lr: float,
        schedule: Schedule,
        weight_decay: float = 0.0,
        *,
        training: int = 0,
    ) -> None:
        """`training` is the number of the phase that trains; before and after it the network is as it is scored."""
        self.detector = detector.to(runtime.device)
        self.network = runtime.wrap(network)
        self.runtime = runtime
        self.phases = phases
        self.training = phases[training]
        self.lr, self.schedule = lr, schedule
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay)
        self.phase = ""
        # Finished epochs of the current phase.
        self.epoch = 0

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of the global batch under `loss`, and its terms by their names; images are on the device."""

    def measure(self, batch: Batch) -> None:
        """Take from images what the current phase is about; nothing where there is no such phase."""

    @property
    def trains(self) -> bool:
        """Whether the current phase is the one that trains."""
        return self.phase == self.training.name

    def start(self, phase: str) -> None:
        self.phase, self.epoch = phase, 0
        self.detector.eval()
        if self.trains:
            self.network.train()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        batch = batch._replace(images=batch.images.to(self.runtime.device, non_blocking=True))
        if not self.trains:
            with torch.no_grad():
                self.measure(batch)
            return {}
        terms = self.losses(batch)
        losses = {name: term.detach() for name, term in terms.items()}
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        finite_or_stop(self.phase, losses)
        self.optimizer.step()
        return losses

    def end_epoch(self) -> None:
        self.epoch += 1
        if self.trains:
            set_rate(self.optimizer, self.lr * self.schedule(self.epoch, self.training.epochs))

    def finish(self, phase: str) -> None:
        """End a phase; one that measured fills the detector's constants."""

    def state_dict(self) -> dict[str, Any]:
        return {"detector": self.detector.state_dict(), "optimizer": self.optimizer.state_dict(), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
