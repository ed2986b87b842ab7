"""Copies of the toy whose scores break a rule of the contract, one a rule."""

from __future__ import annotations

import random

import numpy as np
import torch
from contract.toys import Toy, ToyConfig
from torch import Tensor

from models.detector import Scores, evaluating
from models.errors import InputError

__all__ = ["ToyConfig"]


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
