"""A tiny detector that keeps the contract, and one broken copy of it for every rule.

The toy predicts each pixel from its neighbours; where the prediction fails, the image is abnormal.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detector import Batch, Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating, finite_or_stop
from models.errors import InputError, NonFiniteLoss
from models.registry import Entry
from models.runtime import Runtime


def entry(detector: type[Detector]) -> Entry:
    """A row of the registry for a detector of this module."""
    return Entry(
        kind=detector.__name__.lower(),
        module=__name__,
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


# --- Scores of a wrong kind


class ScoresNotANumber(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        heatmap[-1, 0, 0] = float("nan")
        return Scores(image, heatmap)


class ScoresInDouble(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(image.double(), heatmap)


class ScoresAsColumn(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(image[:, None], heatmap)


class HeatmapAtHalfSize(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(image, heatmap[:, ::2, ::2])


class DividesBySpread(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(image / images.flatten(1).std(1), heatmap)


# --- Side effects


class CountsInABuffer(Toy):
    def score(self, images: Tensor) -> Scores:
        scores = super().score(images)
        self.norm.num_batches_tracked += 1
        return scores


class LeavesEvalMode(Toy):
    def score(self, images: Tensor) -> Scores:
        scores = super().score(images)
        self.eval()
        return scores


class RestoresOnlyTheTopMode(Toy):
    def score(self, images: Tensor) -> Scores:
        mode = self.training
        scores = super().score(images)
        self.train(mode)
        return scores


class LeavesGradients(Toy):
    def score(self, images: Tensor) -> Scores:
        with torch.enable_grad():
            self.errors(images.detach()).sum().backward()
        return super().score(images)


class ClearsGradients(Toy):
    def score(self, images: Tensor) -> Scores:
        self.zero_grad()
        return super().score(images)


class DrawsFromTorch(Toy):
    def score(self, images: Tensor) -> Scores:
        torch.rand(1)
        return super().score(images)


class DrawsFromNumpy(Toy):
    def score(self, images: Tensor) -> Scores:
        np.random.random()
        return super().score(images)


class DrawsFromPython(Toy):
    def score(self, images: Tensor) -> Scores:
        random.random()
        return super().score(images)


class ScalesItsInput(Toy):
    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        return super().score(images.mul_(0.5))


class ScoresDifferentlyEachTime(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        self.calls = getattr(self, "calls", 0) + 1
        return Scores(image * (1 + 1e-6 * self.calls), heatmap)


# --- Batch mates


class NormalisesOverTheBatch(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(image, heatmap / heatmap.amax())


class LeaksALittle(Toy):
    """One ten-thousandth of the batch's mean: the flags stay, the scores do not."""

    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(image + 1e-4 * image.mean(), heatmap)


class ScoresInTrainingMode(Toy):
    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with torch.no_grad():
            # Momentum 0 keeps the running statistics: only the scores give it away.
            momentum, self.norm.momentum = self.norm.momentum, 0.0
            heatmap = self.errors(images)
            self.norm.momentum = momentum
        return Scores(heatmap.flatten(1).mean(1), heatmap)


# --- Sizes and wrong input


class SwapsSides(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(image, heatmap.reshape(len(images), images.shape[3], images.shape[2]))


class NeedsSquareImages(Toy):
    def score(self, images: Tensor) -> Scores:
        image, heatmap = super().score(images)
        return Scores(image, heatmap @ heatmap)


class ChecksNothing(Toy):
    def score(self, images: Tensor) -> Scores:
        with evaluating(self), torch.no_grad():
            heatmap = self.errors(images) / self.scale
        return Scores(heatmap.flatten(1).mean(1), heatmap)


class ChecksNoShape(ChecksNothing):
    def score(self, images: Tensor) -> Scores:
        if images.ndim != 4 or images.shape[1] != self.spec.channels:
            self.spec.check(images)
        if images.shape[2:] == self.spec.size_px:
            self.spec.check(images)
        return super().score(images)


class ChecksNoRange(ChecksNothing):
    def score(self, images: Tensor) -> Scores:
        self.spec.check(images.clamp(0, 1) if images.is_floating_point() else images)
        return super().score(images)


class ChecksNoNaN(ChecksNothing):
    def score(self, images: Tensor) -> Scores:
        self.spec.check(images.nan_to_num(0.0) if images.dtype == torch.float32 else images)
        return super().score(images)


class ConvertsOtherTypes(ChecksNothing):
    def score(self, images: Tensor) -> Scores:
        self.spec.check(images.float().clamp(max=1) if images.dtype != torch.float32 else images)
        return super().score(images.float())


class RefusesWithoutRemedy(Toy):
    def score(self, images: Tensor) -> Scores:
        try:
            return super().score(images)
        except InputError as error:
            raise InputError("Bad images.", "", "") from error


class LeavesGradModeToItsCaller(Toy):
    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self):
            x = images.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.errors(x).sum(), x)
        heatmap = gradient.abs().sum(1)
        return Scores(heatmap.flatten(1).mean(1), heatmap)


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
