"""Linear masked inpainting: the idea of self-supervised masking (SSM, RIAD) in closed form. No paper is claimed.

Under one Gaussian of normal pixels x ~ N(m, C) the best guess of hidden pixels h by the visible ones v is
m_h + C_hv C_vv^-1 (x_v - m_v): a matrix for each mask, which follows from mean and covariance.
Cells of several sizes are hidden in checkerboards, each pixel once for each size.
What is guessed is compared with what is there, by gradients and by values.

Nothing is trained: a fit is one pass over the images and two over those held out, which say how large a ridge the
covariance needs, whether mirrored images (left to right) are normal too, and which comparison finds synthetic defects.

By default the Gaussian is one of the whole image, for images that lie alike.
With `patch` it is one of patches that overlap, wherever they lie: for tiles, textures and images that do not.

Shape suffixes: B batch, C channels, H height, W width of the input; h, w those of the grid; L patches; P pixels of a
patch.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from models.detector import Batch, Detector, DetectorConfig, InputSpec, Phase, Scores, evaluating, finite_or_stop
from models.errors import ConfigError
from models.parts.conditional import MOST_PIXELS, RIDGES
from models.parts.error_score import ErrorScore, ErrorScoreFit, Way
from models.parts.gaussian import GaussianSums
from models.parts.maps import enlarged, gaussian_blur, resampled
from models.parts.masks import checkerboard_masks
from models.parts.similarity import gradient_distance
from models.runtime import Runtime

# Gradients are compared at this many sizes, each half of the one before.
SCALES = 3
# Sigma of the heatmap's blur, as a share of the grid's side.
BLUR = 1 / 32


class LinearConfig(DetectorConfig):
    """The detector's options."""

    batch_size: int = Field(default=64, ge=1)
    # Side of the grid in pixels; where the input is not square, of a square of as many pixels.
    grid: int = Field(default=32, ge=16, le=256)
    # Side in pixels of the grid of the patches that share one Gaussian; 0: the image as a whole.
    patch: int = Field(default=0, ge=0, le=64)
    # Sides of the hidden cells, in pixels of the grid.
    cells: tuple[int, ...] = Field(default=(4, 8), min_length=1)
    score: Way = "auto"

    @model_validator(mode="after")
    def _fits_into_the_grid(self) -> Self:
        if self.patch % 2 or self.patch > self.grid:
            raise ConfigError(
                "Patches overlap by half: their side is even, and at most the grid's.",
                f"patch={self.patch} in a grid of {self.grid}",
                "Choose --set patch=16.",
            )
        if min(self.cells) < 1 or 2 * max(self.cells) > (self.patch or self.grid):
            raise ConfigError(
                "cells are at most half as wide as what is guessed as a whole.",
                f"cells={list(self.cells)} in {self.patch or self.grid} pixels",
                "Choose smaller ones with --set cells=[2,4].",
            )
        return self


class LinearLearner:
    """Phases: `statistics`; over held-out normals `ridge`, then `choose`."""

    def __init__(self, detector: Linear, runtime: Runtime) -> None:
        self.phases: tuple[Phase, ...] = (
            Phase("statistics", 1),
            Phase("ridge", 1, "held_out"),
            Phase("choose", 1, "held_out"),
        )
        self.detector = detector.to(runtime.device)
        self.runtime = runtime
        self.phase = ""
        channels, pixels = detector.mean.shape
        self.sums = {phase: GaussianSums(channels, pixels) for phase in ("statistics", "ridge")}
        self.scores = ErrorScoreFit(detector.error_score, detector.errors, runtime)

    def start(self, phase: str) -> None:
        self.phase = phase
        self.detector.eval()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.images.to(self.runtime.device, non_blocking=True)
        with torch.no_grad():
            finite_or_stop(self.phase, {"images": self.runtime.mean(images.flatten(1).sum(1))})
            if self.phase == "choose":
                self.scores.step(batch._replace(images=images))
            else:
                self.sums[self.phase].add(self.detector.patches(images).flatten(0, 1))
        return {}

    def end_epoch(self) -> None:
        if self.phase in self.sums:
            self.sums[self.phase].all_reduce(self.runtime.all_reduce_sum)

    def finish(self, phase: str) -> None:
        if phase == "ridge":
            self.detector.fit(self.sums["statistics"], self.sums["ridge"])
        elif phase == "choose":
            self.scores.finish(self.detector.config.score)

    def state_dict(self) -> dict[str, Any]:
        sums = {phase: sums.state_dict() for phase, sums in self.sums.items()}
        return {"detector": self.detector.state_dict(), "sums": sums, **self.scores.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        for phase, sums in self.sums.items():
            sums.load_state_dict(state["sums"][phase])
        self.scores.load_state_dict(state)


class Linear(Detector):
    """The mean of normal pixels, and for each mask the matrix that guesses what it hides."""

    orders: Tensor
    places: Tensor
    mean: Tensor
    ridge: Tensor
    mirrored: Tensor

    def __init__(self, config: LinearConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        # Nothing here is pretrained.
        del pretrained
        super().__init__()
        self.config: LinearConfig = config
        self.spec = spec
        self.grid, self.patch, self.stride = _geometry(config, spec)
        if math.prod(self.patch) > MOST_PIXELS:
            raise ConfigError(
                f"One Gaussian is of up to {MOST_PIXELS} pixels, as its covariance has their square of elements.",
                f"grid={config.grid}, which is {self.patch[0]}x{self.patch[1]} of an image of "
                f"{spec.height_px}x{spec.width_px}",
                "Choose a smaller one with --set grid=32, or patches with --set patch=16.",
            )
        self.masks = [
            mask == 0 for cell in config.cells for mask in checkerboard_masks(cell, self.patch).flatten(1).unbind()
        ]
        # Of each size of cells: the pixels that the first mask hides, and then those that the second does.
        orders = [torch.cat([hidden.nonzero() for hidden in pair]).squeeze(1) for pair in _pairs(self.masks)]
        self.register_buffer("orders", torch.stack(orders), persistent=False)
        self.register_buffer("places", torch.stack([order.argsort() for order in orders]), persistent=False)
        self.register_buffer("mean", torch.zeros(spec.channels, math.prod(self.patch)))
        self.register_buffer("ridge", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mirrored", torch.tensor(False))
        for number, hidden in enumerate(self.masks):
            shape = (spec.channels, int((~hidden).sum()), int(hidden.sum()))
            self.register_buffer(f"weights_{number}", torch.zeros(shape))
        self.error_score = ErrorScore()

    @property
    def one_graph(self) -> bool:
        # No engine folds patches in float64.
        return not self.config.patch

    def patches(self, images_BCHW: Tensor) -> Tensor:
        """The images resampled by area to the grid, and cut into patches, [B, L, C, P] in float64."""
        grid_BChw = resampled(images_BCHW.double(), self.grid, "area")
        if not self.config.patch:
            return grid_BChw.flatten(2).unsqueeze(1)
        columns = F.unfold(grid_BChw, self.patch, stride=self.stride)
        return columns.unflatten(1, (self.spec.channels, math.prod(self.patch))).permute(0, 3, 1, 2)

    def whole(self, patches_BLCP: Tensor) -> Tensor:
        """The grids [B, C, h, w] of patches; where these overlap, their mean."""
        if not self.config.patch:
            return patches_BLCP.squeeze(1).unflatten(2, self.grid)
        columns = patches_BLCP.permute(0, 2, 3, 1).flatten(1, 2)
        summed = F.fold(columns, self.grid, self.patch, stride=self.stride)
        return summed / F.fold(torch.ones_like(columns), self.grid, self.patch, stride=self.stride)

    def fit(self, sums: GaussianSums, held_out: GaussianSums) -> None:
        """Take mean and matrices from complete sums: of the candidate whose guesses of held-out normals err least.

        Candidates are the ridges, with images as they are, and with their mirror images beside them.
        """
        gaussians = [sums, _with_mirrored(sums, self.patch)]
        # A checkerboard's complement errs as much as itself.
        judged = self.masks[::2]

        def error(candidate: tuple[int, float]) -> float:
            mirrored, ridge = candidate
            mean_CP, covariance_CPP = gaussians[mirrored].mean(), gaussians[mirrored].ridged(ridge)
            # Second moments of held-out normals around the mean of those fitted on.
            away_CP = held_out.mean() - mean_CP
            count = held_out.count.to(mean_CP)
            moments_CPP = held_out.covariance() * (count - 1) / count + away_CP.unsqueeze(2) * away_CP.unsqueeze(1)
            return sum(float(_squared_error(moments_CPP, hidden, _matrix(covariance_CPP, hidden))) for hidden in judged)

        mirrored, ridge = min(itertools.product((0, 1), RIDGES), key=error)
        self.mirrored.fill_(mirrored)
        self.ridge.fill_(ridge)
        self.mean.copy_(gaussians[mirrored].mean())
        covariance_CPP = gaussians[mirrored].ridged(ridge)
        for number, hidden in enumerate(self.masks):
            self.get_buffer(f"weights_{number}").copy_(_matrix(covariance_CPP, hidden))

    def guesses(self, patches_BLCP: Tensor) -> list[Tensor]:
        """For each size of cells, what the pixels would be in normal images, [B, L, C, P] in [0, 1]."""
        mean_CP = self.mean.double()
        # A row for each patch: of a channel all are multiplied at once.
        rows_CNP = (patches_BLCP - mean_CP).flatten(0, 1).transpose(0, 1)
        found = []
        for number, (order, places) in enumerate(zip(self.orders, self.places, strict=True)):
            first, second = 2 * number, 2 * number + 1
            hides = int(self.masks[first].sum())
            in_first, in_second = rows_CNP[:, :, order[:hides]], rows_CNP[:, :, order[hides:]]
            guesses = torch.cat([in_second @ self._weights(first), in_first @ self._weights(second)], 2)
            guess_NCP = guesses[:, :, places].transpose(0, 1)
            found.append((guess_NCP.unflatten(0, (-1, patches_BLCP.shape[1])) + mean_CP).clamp(0.0, 1.0))
        return found

    def _weights(self, number: int) -> Tensor:
        return self.get_buffer(f"weights_{number}").double()

    def errors(self, images_BCHW: Tensor) -> Tensor:
        """How far gradients and values lie from those guessed, [2, B, h, w] in float64.

        A score is a small difference divided by its small spread among normals.
        In float32 scores of solar cells are off by 6e-6, and by 0.08 where guesses are all but exact.
        """
        patches = self.patches(images_BCHW)
        x_B1Chw = self.whole(patches).unsqueeze(1)
        # One for each of K sizes of cells.
        y_BKChw = torch.stack([self.whole(guess) for guess in self.guesses(patches)], 1)
        gradient = gradient_distance(x_B1Chw, y_BKChw, SCALES)
        difference = (x_B1Chw - y_BKChw).abs().mean(2)
        return torch.stack([gradient, difference]).mean(2)

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            image, heat_Bhw = self.error_score(self.errors(images))
            blurred = gaussian_blur(heat_Bhw, BLUR * math.sqrt(math.prod(self.grid)))
            heatmap = enlarged(blurred.float(), self.spec.size_px)
        return Scores(image.float(), heatmap)

    def learner(self, runtime: Runtime) -> LinearLearner:
        return LinearLearner(self, runtime)


def _pairs(masks: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The masks of each size of cells: a checkerboard and its complement."""
    return list(zip(masks[::2], masks[1::2], strict=True))


def _geometry(config: LinearConfig, spec: InputSpec) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Height and width of the grid, of a patch, and of the step from one to the next."""
    sides = spec.sides(config.grid)
    # Of the smallest scale of gradients four pixels a side are left, and two of the largest cells fit in.
    least = max(4 << (SCALES - 1), 2 * max(config.cells))
    if not config.patch:
        rows, columns = (max(least, round(side)) for side in sides)
        grid = (rows, columns)
        return grid, grid, grid
    stride = config.patch // 2
    rows, columns = (max(math.ceil(least / stride), 2, round(side / stride)) * stride for side in sides)
    return (rows, columns), (config.patch, config.patch), (stride, stride)


def _with_mirrored(sums: GaussianSums, patch: tuple[int, int]) -> GaussianSums:
    """The sums of the same images and of their mirror images: what they are of a pixel, they are of its counterpart."""
    across = torch.arange(math.prod(patch)).view(patch).flip(1).flatten()
    both = GaussianSums(*sums.total_PD.shape)
    both.count = 2 * sums.count
    both.total_PD = sums.total_PD + sums.total_PD[:, across]
    both.outer_PDD = sums.outer_PDD + sums.outer_PDD[:, across][:, :, across]
    return both


def _matrix(covariance_CPP: Tensor, hidden: Tensor) -> Tensor:
    """C_vv^-1 C_vh of the pixels that are hidden and those that are not, [C, visible, hidden]."""
    rows_CVP = covariance_CPP[:, ~hidden]
    return torch.cholesky_solve(rows_CVP[:, :, hidden], torch.linalg.cholesky(rows_CVP[:, :, ~hidden]))


def _squared_error(moments_CPP: Tensor, hidden: Tensor, matrix_CVH: Tensor) -> Tensor:
    """Expected squared error of the hidden pixels' guesses, sum over all: tr(S_hh - 2 W'S_vh + W'S_vv W)."""
    rows_CVP = moments_CPP[:, ~hidden]
    both = (matrix_CVH * rows_CVP[:, :, hidden]).sum()
    guessed = (matrix_CVH * (rows_CVP[:, :, ~hidden] @ matrix_CVH)).sum()
    return moments_CPP[:, hidden][:, :, hidden].diagonal(dim1=1, dim2=2).sum() - 2 * both + guessed
