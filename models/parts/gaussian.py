"""One multivariate Gaussian per position of a feature map: sums that add up over workers, and Mahalanobis distances.

Shape suffixes: B batch, P positions, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class GaussianSums:
    """Sufficient statistics of P Gaussians of D dimensions: counts, sums and outer products, in float64.

    They add up: over batches here, over workers by `all_reduce`. Memory is 8 P D (D + 1) bytes.
    """

    def __init__(self, positions: int, dims: int) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.total_PD = torch.zeros(positions, dims, dtype=torch.float64)
        self.outer_PDD = torch.zeros(positions, dims, dims, dtype=torch.float64)

    def add(self, features_BPD: Tensor) -> None:
        """Count in a batch of features."""
        x_PBD = features_BPD.detach().double().transpose(0, 1)
        device = x_PBD.device
        if self.total_PD.device != device:
            self.total_PD, self.outer_PDD = self.total_PD.to(device), self.outer_PDD.to(device)
        self.count += x_PBD.shape[1]
        self.total_PD += x_PBD.sum(1)
        self.outer_PDD.baddbmm_(x_PBD.transpose(1, 2), x_PBD)

    def all_reduce(self, all_reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Add up the workers' sums; afterwards every worker holds the whole."""
        self.count = all_reduce_sum(self.count.to(self.total_PD.device)).cpu()
        self.total_PD = all_reduce_sum(self.total_PD)
        self.outer_PDD = all_reduce_sum(self.outer_PDD)

    def mean(self) -> Tensor:
        """[P, D]."""
        return self.total_PD / self.count.to(self.total_PD.device)

    def covariance(self) -> Tensor:
        """The sample covariance [P, D, D]; zero where fewer than two images were counted."""
        mean_PD = self.mean()
        centred = self.outer_PDD - self.count.to(mean_PD.device) * mean_PD.unsqueeze(2) * mean_PD.unsqueeze(1)
        return centred / (self.count.clamp_min(2).to(mean_PD.device) - 1)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, for a checkpoint."""
        return {"count": self.count, "total": self.total_PD, "outer": self.outer_PDD}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.count, self.total_PD, self.outer_PDD = state["count"], state["total"], state["outer"]


class GaussianBank(nn.Module):
    """P fitted Gaussians, ready to measure: means [P, D] and inverse Cholesky factors [P, D, D]."""

    mean: Tensor
    whitening: Tensor

    def __init__(self, positions: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions, dims))
        self.register_buffer("whitening", torch.eye(dims).repeat(positions, 1, 1))

    def fit(self, sums: GaussianSums, ridge: float) -> None:
        """Take the Gaussians from complete sums.

        Args:
            sums: over all training images of all workers.
            ridge: added to the covariance's diagonal, as a share of the mean variance of all positions and dimensions,
                so that its effect does not hang on the backbone's scale. It keeps a covariance of fewer images than
                dimensions solvable.
        """
        covariance = sums.covariance()
        variance = covariance.diagonal(dim1=1, dim2=2).mean().clamp_min(torch.finfo(torch.float32).tiny)
        covariance.diagonal(dim1=1, dim2=2).add_(ridge * variance)
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        # The inverse of the factor, so that measuring is one matrix product and no triangular solve.
        self.whitening.copy_(torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False))
        self.mean.copy_(sums.mean())

    def distance(self, features_BPD: Tensor) -> Tensor:
        """Mahalanobis distances [B, P] of features [B, P, D]."""
        centred_PDB = (features_BPD - self.mean).permute(1, 2, 0)
        return (self.whitening @ centred_PDB).square().sum(1).sqrt().T


class PositionScale(nn.Module):
    """Mean and spread of P scores over held-out normals, each position's own drawn towards that of all.

    Fewer than some tens of images say little of one position: its mean and variance count as `n` images beside
    `PRIOR` images of the overall ones.
    """

    PRIOR = 10.0
    mean: Tensor
    spread: Tensor

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions))
        self.register_buffer("spread", torch.ones(positions))

    def fit(self, sums_3P: Tensor, by_position: bool) -> None:
        """Take the scale from all-reduced sums [3, P]: counts, sums and sums of squares, float64."""
        count, total, squares = sums_3P
        n = count.clamp_min(1)
        mean = total / n
        variance = (squares / n - mean.square()).clamp_min(0)
        overall_mean = total.sum() / count.sum().clamp_min(1)
        overall = (squares.sum() / count.sum().clamp_min(1) - overall_mean.square()).clamp_min(0)
        if by_position:
            mean = (n * mean + self.PRIOR * overall_mean) / (n + self.PRIOR)
            variance = (n * variance + self.PRIOR * overall) / (n + self.PRIOR)
        else:
            mean, variance = overall_mean.expand_as(mean), overall.expand_as(mean)
        self.mean.copy_(mean)
        # Held-out normals that are all alike leave the scores as they are.
        self.spread.copy_(torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance)))

    def forward(self, scores_BP: Tensor) -> Tensor:
        """How many spreads each score lies above the mean of normals, [B, P]."""
        return (scores_BP - self.mean) / self.spread
