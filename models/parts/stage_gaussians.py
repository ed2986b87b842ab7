"""A map's Gaussians of normal features with the scale of their distances, and the phases in which a fit comes to both.

Shape suffixes: B batch, C channels, H height, W width, P positions, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones.stages import Shape
from models.detector import Phase, finite_or_stop
from models.parts.gaussian import GaussianBank, GaussianSums, PositionScale, sums_of
from models.runtime import Runtime

STATISTICS = Phase("statistics", 1)
SCALE = Phase("scale", 1)
LEVEL = Phase("level", 1, "held_out")
# Added to a covariance's diagonal, as a share of the mean variance.
RIDGE = 0.01


class StageGaussians(nn.Module):
    """A random choice of a map's dimensions, a Gaussian of them at every position, and the scale of its distances."""

    dims: Tensor

    def __init__(self, shape: Shape, dims: int) -> None:
        """For maps of `shape`, `dims` of their dimensions drawn from torch's generator; 0 takes all."""
        super().__init__()
        self.register_buffer("dims", torch.randperm(shape.channels)[: dims or shape.channels].sort().values)
        self.grid = (shape.height, shape.width)
        self.bank = GaussianBank(shape.height * shape.width, len(self.dims))
        self.scale = PositionScale(shape.height * shape.width)

    def features(self, map_BCHW: Tensor) -> Tensor:
        """The chosen dimensions at every position, [B, P, D]."""
        return map_BCHW[:, self.dims].flatten(2).transpose(1, 2)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Scaled Mahalanobis distances [B, H, W]."""
        return self.scale(self.bank.distance(self.features(map_BCHW))).unflatten(1, self.grid)


class GaussianFit:
    """What a fit adds up for the Gaussians of several maps, and takes them from.

    `statistics` fits the Gaussians. `scale` takes what distances training images have at each position.
    `level` sets all positions by held-out normals, so that maps add up.
    """

    def __init__(self, gaussians: Iterable[nn.Module], runtime: Runtime) -> None:
        self.gaussians = [stage for stage in gaussians if isinstance(stage, StageGaussians)]
        self.runtime = runtime
        self._sums = [GaussianSums(*stage.bank.mean.shape) for stage in self.gaussians]
        self._scale_sums = [torch.zeros(3, len(stage.bank.mean), dtype=torch.float64) for stage in self.gaussians]

    def step(self, phase: str, maps: Sequence[Tensor]) -> None:
        """Count in a batch's maps.

        Raises:
            NonFiniteLoss: on every rank, where the maps of one are not finite.
        """
        finite_or_stop(phase, {"features": self.runtime.mean(torch.stack([x.sum() for x in maps]))})
        for number, (stage, map_BCHW) in enumerate(zip(self.gaussians, maps, strict=True)):
            features = stage.features(map_BCHW)
            if phase == "statistics":
                self._sums[number].add(features)
                continue
            distance = stage.bank.distance(features)
            if phase == "level":
                distance = stage.scale(distance)
            self._scale_sums[number] += sums_of(distance)

    def end_epoch(self, phase: str) -> None:
        """Add up the workers' sums."""
        if phase == "statistics":
            for sums in self._sums:
                sums.all_reduce(self.runtime.all_reduce_sum)
        elif phase in ("scale", "level"):
            self._scale_sums = [self.runtime.all_reduce_sum(sums) for sums in self._scale_sums]

    def finish(self, phase: str) -> None:
        """Set Gaussians or scales from the phase's sums."""
        for number, stage in enumerate(self.gaussians):
            if phase == "statistics":
                stage.bank.fit(self._sums[number], RIDGE)
            elif phase in ("scale", "level"):
                fit = stage.scale.fit_positions if phase == "scale" else stage.scale.fit_level
                fit(self._scale_sums[number])
                self._scale_sums[number] = torch.zeros_like(self._scale_sums[number])

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, for a checkpoint."""
        return {"sums": [sums.state_dict() for sums in self._sums], "scale_sums": self._scale_sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for sums, kept in zip(self._sums, state["sums"], strict=True):
            sums.load_state_dict(kept)
        self._scale_sums = list(state["scale_sums"])
