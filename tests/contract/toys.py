"""A tiny detector that keeps the contract.

It predicts each pixel from its neighbours; where the prediction fails, the image is abnormal.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detector import Batch, Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating, finite_or_stop
from models.registry import Entry
from models.runtime import Runtime


def entry(detector: type[Detector]) -> Entry:
    """A row of the registry for the toy, or for a broken copy of it, in whose module is its configuration, too."""
    return Entry(
        kind=detector.__name__.lower(),
        module=detector.__module__,
        detector=detector.__name__,
        config="ToyConfig",
        title="A toy",
        source="these tests",
        channels=1,
        needs_anomalous=False,
        weights="none",
    )


class ToyConfig(TrainedConfig):
    epochs: int = 12
    batch_size: int = 8
    lr: float = 0.02


class Toy(Detector):
    """A linear prediction of every pixel from the 24 around it, over a batch norm."""

    scale: Tensor
    blind: Tensor

    def __init__(self, config: ToyConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        del pretrained
        self.config, self.spec = config, spec
        self.norm = nn.BatchNorm2d(spec.channels)
        self.predict = nn.Conv2d(spec.channels, spec.channels, 5, padding=2)
        blind = torch.ones(5, 5)
        blind[2, 2] = 0
        self.register_buffer("blind", blind)
        self.register_buffer("scale", torch.ones(()))

    def errors(self, images: Tensor) -> Tensor:
        """Squared prediction errors [B, H, W]."""
        x = self.norm(images)
        predicted = F.conv2d(x, self.predict.weight * self.blind, self.predict.bias, padding=2)
        return (predicted - x).square().mean(1)

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            heatmap = self.errors(images) / self.scale
        return Scores(heatmap.flatten(1).mean(1), heatmap)

    def learner(self, runtime: Runtime) -> ToyLearner:
        return ToyLearner(self, runtime)


class ToyLearner:
    """Phases: `predict` learns, `scale` measures the mean error of normal images."""

    def __init__(self, detector: Toy, runtime: Runtime) -> None:
        self.detector, self.runtime = detector, runtime
        self.phases = (Phase("predict", detector.config.epochs), Phase("scale", 1))
        self.optimizer = torch.optim.Adam(detector.parameters(), lr=detector.config.lr)
        self.phase = ""
        self.sums = torch.zeros(2, dtype=torch.float64)

    def start(self, phase: str) -> None:
        self.phase = phase
        self.detector.train(phase == "predict")

    def loss(self, batch: Batch) -> Tensor:
        return self.detector.errors(batch.images).mean()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        if self.phase == "scale":
            with torch.no_grad():
                self.sums += torch.tensor([float(self.detector.errors(batch.images).mean(0).sum()), 1.0])
            return {}
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        finite_or_stop(self.phase, {"loss": loss.detach()})
        self.optimizer.step()
        return {"loss": loss.detach()}

    def end_epoch(self) -> None:
        return

    def finish(self, phase: str) -> None:
        if phase == "scale":
            total, batches = self.runtime.all_reduce_sum(self.sums)
            pixels = self.detector.spec.height_px * self.detector.spec.width_px
            self.detector.scale.copy_(total / batches / pixels)

    def state_dict(self) -> dict[str, Any]:
        return {"detector": self.detector.state_dict(), "optimizer": self.optimizer.state_dict(), "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sums = state["sums"]
