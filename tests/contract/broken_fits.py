"""Copies of the toy that learn, or keep what they learnt, against a rule of the contract, one a rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from contract.toys import Toy, ToyConfig, ToyLearner
from torch import Tensor, nn

from models.detector import Batch, InputSpec, Phase, Scores, finite_or_stop
from models.errors import NonFiniteLoss
from models.runtime import Runtime

__all__ = ["ToyConfig"]


# --- What is saved


class LearnerWithAnAttribute(ToyLearner):
    def finish(self, phase: str) -> None:
        super().finish(phase)
        self.detector.offset = 0.25


class KeepsAnAttribute(Toy):
    """Learns a number that is neither in the config nor in the state dict."""

    offset = 0.0

    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(image + self.offset, heatmap)

    def learner(self, runtime: Runtime) -> ToyLearner:
        return LearnerWithAnAttribute(self, runtime)


# --- Fits


class HasADeadParameter(Toy):
    def __init__(self, config: ToyConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__(config, spec, pretrained=pretrained)
        self.unused = nn.Parameter(torch.ones(3))


class LearnerWithoutCheck(ToyLearner):
    def step(self, batch: Batch) -> dict[str, Tensor]:
        if self.phase == "scale":
            return super().step(batch)
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


class NeverStops(Toy):
    def learner(self, runtime: Runtime) -> ToyLearner:
        return LearnerWithoutCheck(self, runtime)


class LearnerThatStopsLate(LearnerWithoutCheck):
    def step(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().step(batch)
        finite_or_stop(self.phase, losses)
        weights = {name: p.detach().sum() for name, p in self.detector.named_parameters()}
        if not all(bool(torch.isfinite(weight)) for weight in weights.values()):
            raise NonFiniteLoss(self.phase, "weights")
        return losses


class StopsAfterTheUpdate(Toy):
    def learner(self, runtime: Runtime) -> ToyLearner:
        return LearnerThatStopsLate(self, runtime)


class LearnerWithAttachedLoss(ToyLearner):
    def step(self, batch: Batch) -> dict[str, Tensor]:
        super().step(batch)
        return {"loss": self.loss(batch)}


class ReportsAttachedLosses(Toy):
    def learner(self, runtime: Runtime) -> ToyLearner:
        return LearnerWithAttachedLoss(self, runtime)


class LearnerOnHeldOutImages(ToyLearner):
    def __init__(self, detector: Toy, runtime: Runtime) -> None:
        super().__init__(detector, runtime)
        self.phases = (*self.phases, Phase("tune", 1, "held_out"))


class TrainsOnHeldOutImages(Toy):
    def learner(self, runtime: Runtime) -> ToyLearner:
        return LearnerOnHeldOutImages(self, runtime)


class ScoresTheWrongWay(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(-image, heatmap)


class TurnsItsHeatmap(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(image, heatmap.flip(1, 2))


class LearnerThatForgetsTheOptimizer(ToyLearner):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.sums = state["sums"]


class ForgetsItsOptimizer(Toy):
    def learner(self, runtime: Runtime) -> ToyLearner:
        return LearnerThatForgetsTheOptimizer(self, runtime)


class LearnerThatForgetsSums(ToyLearner):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "sums": torch.zeros(2, dtype=torch.float64)})


class ForgetsTheLastPhase(Toy):
    def learner(self, runtime: Runtime) -> ToyLearner:
        return LearnerThatForgetsSums(self, runtime)


class LearnerWithGlobalNoise(ToyLearner):
    """Draws from torch's generator, which a restarted worker seeds anew: it should follow seed and epoch."""

    def loss(self, batch: Batch) -> Tensor:
        return self.detector.errors(batch.images + 0.05 * torch.randn_like(batch.images)).mean()


class AugmentsFromTheGlobalGenerator(Toy):
    def learner(self, runtime: Runtime) -> ToyLearner:
        return LearnerWithGlobalNoise(self, runtime)


class LearnerWithFreshNoise(ToyLearner):
    def loss(self, batch: Batch) -> Tensor:
        noise = np.random.default_rng().standard_normal(batch.images.shape).astype(np.float32)
        return self.detector.errors(batch.images + 0.05 * torch.from_numpy(noise)).mean()


class AugmentsUnseeded(Toy):
    def learner(self, runtime: Runtime) -> ToyLearner:
        return LearnerWithFreshNoise(self, runtime)
