"""What hidden pixels would be in a normal image, given those that are visible: a conditional mean in closed form.

Under one Gaussian x ~ N(m, C) with precision matrix Q = C^-1 it is m_h - Q_hh^-1 Q_hv (x_v - m_v) for hidden pixels h
and visible ones v: any mask takes one factorisation, as large as what it hides.

Shape suffixes: B batch, C channels, H height, W width, P = H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.parts.gaussian import GaussianSums
from models.runtime import Runtime

# Candidates of what is added to the covariance's diagonal, as a share of the mean variance.
RIDGES = (0.005, 0.02, 0.1, 0.5)
# Of what a network trains on: held-out images have no part in its weights.
FOLD_RIDGE = 0.02
# The precision matrix of so many pixels has their square of elements.
MOST_PIXELS = 64 * 64
# Images of each are guessed by what was fitted on the others.
FOLDS = 2
# Masks whose factors are kept: as many as a few sizes of cells have.
KEPT = 16


class ConditionalMean(nn.Module):
    """Mean [C, P] and precision [C, P, P] of normal pixels, a Gaussian for each channel, in float64."""

    mean: Tensor
    precision: Tensor

    def __init__(self, channels: int, pixels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, pixels, dtype=torch.float64))
        self.register_buffer("precision", torch.eye(pixels, dtype=torch.float64).repeat(channels, 1, 1))
        # By mask: its rows of the precision, and their factor.
        self._kept: dict[bytes, tuple[Tensor, Tensor]] = {}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def fit(self, sums: GaussianSums, ridge: float) -> ConditionalMean:
        """Take mean and precision from sums of images [B, C, P]; `ridge` is a share of the mean variance."""
        self._kept.clear()
        self.mean.copy_(sums.mean())
        self.precision.copy_(torch.cholesky_inverse(torch.linalg.cholesky(sums.ridged(ridge))))
        return self

    def forward(self, images_BCHW: Tensor, visible_1HW: Tensor) -> Tensor:
        """The images with guesses in [0, 1] where one mask for all hides them (0), [B, C, H, W] in float64."""
        x_BCP = images_BCHW.double().flatten(2)
        hidden_P = visible_1HW.flatten() == 0
        rows_CHV, factor_CHH = self._of(hidden_P)
        mean_CP = self.mean.double()
        away_CVB = (x_BCP - mean_CP)[..., ~hidden_P].permute(1, 2, 0)
        below_CHB = torch.cholesky_solve(rows_CHV @ away_CVB, factor_CHH)
        guess_BCP = x_BCP.clone()
        guess_BCP[..., hidden_P] = (mean_CP[:, hidden_P] - below_CHB.permute(2, 0, 1)).clamp(0.0, 1.0)
        return guess_BCP.view(images_BCHW.shape)

    def _of(self, hidden_P: Tensor) -> tuple[Tensor, Tensor]:
        """Q_hv and the factor of Q_hh, of the latest masks kept."""
        key = str(self.precision.device).encode() + hidden_P.cpu().numpy().tobytes()
        if key not in self._kept:
            if len(self._kept) == KEPT:
                self._kept.clear()
            # In float64 also where the module was cast to less.
            rows_CHP = self.precision.double()[:, hidden_P]
            self._kept[key] = rows_CHP[:, :, ~hidden_P], torch.linalg.cholesky(rows_CHP[:, :, hidden_P])
        return self._kept[key]


class ConditionalFit:
    """Fits a base, and for training on its guesses one more for each fold of the images, on all but these.

    A base knows the images it was fitted on too well: what it leaves of them is not what it leaves of others.
    Phases: `statistics` over training images, `ridge` over held-out ones; then `guess`.
    """

    def __init__(self, base: ConditionalMean, runtime: Runtime, *, mirrored: bool) -> None:
        self.base, self.runtime, self.mirrored = base, runtime, mirrored
        channels, pixels = base.mean.shape
        self.sums = [GaussianSums(channels, pixels) for _ in range(FOLDS)]
        # Of guesses of held-out images, for each candidate.
        self.squared_errors = torch.zeros(len(RIDGES), dtype=torch.float64)
        self._candidates: list[ConditionalMean] = []
        self._folds: list[ConditionalMean] = []

    def count(self, images_BCHW: Tensor, positions_B: Tensor) -> None:
        """Count in training images; `mirrored` ones from left to right, too."""
        for fold, sums in enumerate(self.sums):
            own = images_BCHW[positions_B % FOLDS == fold]
            for view in (own, own.flip(3)) if self.mirrored else (own,):
                sums.add(view.flatten(2))

    def end_count(self) -> None:
        """Add up the workers' sums."""
        for sums in self.sums:
            sums.all_reduce(self.runtime.all_reduce_sum)

    def try_out(self, images_BCHW: Tensor, masks_N1HW: Tensor) -> None:
        """Measure each candidate's guesses of held-out images."""
        self._candidates = self._candidates or [self._fitted(self.sums, ridge) for ridge in RIDGES]
        for mask in masks_N1HW:
            for number, base in enumerate(self._candidates):
                error = (base(images_BCHW, mask) - images_BCHW).square().sum()
                self.squared_errors[number] += error.cpu()

    def end_try_out(self) -> None:
        """Add up the workers' errors."""
        self.squared_errors = self.runtime.all_reduce_sum(self.squared_errors)

    @property
    def ridge(self) -> float:
        """The candidate that errs least."""
        return RIDGES[int(self.squared_errors.argmin())]

    def finish(self) -> None:
        """Fit the base on all that was counted."""
        self._candidates = []
        self.base.fit(_added(self.sums), self.ridge)

    def guess(self, images_BCHW: Tensor, positions_B: Tensor, visible_1HW: Tensor) -> Tensor:
        """As the base's, by one that has not seen the image nor its mirror image."""
        self._folds = self._folds or [self._fitted(self._others(fold), FOLD_RIDGE) for fold in range(FOLDS)]
        found = torch.empty_like(images_BCHW)
        for fold, base in enumerate(self._folds):
            own = positions_B % FOLDS == fold
            if own.any():
                found[own] = base(images_BCHW[own], visible_1HW).to(found)
        return found

    def _others(self, fold: int) -> list[GaussianSums]:
        """The sums of all folds but this; of a single image there is nothing else."""
        found = [sums for other, sums in enumerate(self.sums) if other != fold]
        return found if any(sums.count > 0 for sums in found) else self.sums

    def _fitted(self, sums: list[GaussianSums], ridge: float) -> ConditionalMean:
        return ConditionalMean(*self.base.mean.shape).to(self.base.mean.device).fit(_added(sums), ridge)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, for a checkpoint."""
        return {"sums": [sums.state_dict() for sums in self.sums], "ridge_errors": self.squared_errors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for sums, stored in zip(self.sums, state["sums"], strict=True):
            sums.load_state_dict(stored)
        self.squared_errors = state["ridge_errors"]
        self._candidates, self._folds = [], []


def _added(sums: list[GaussianSums]) -> GaussianSums:
    """The sums of all of these together."""
    whole = GaussianSums(*sums[0].total_PD.shape)
    states = [part.state_dict() for part in sums]
    whole.load_state_dict({name: torch.stack([state[name] for state in states]).sum(0) for name in states[0]})
    return whole
