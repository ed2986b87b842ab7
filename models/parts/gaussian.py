"""One multivariate Gaussian per position of a feature map: sums that add up over workers, and Mahalanobis distances.

Shape suffixes: B batch, P positions, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.runtime import AllReduceSum


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

    def all_reduce(self, all_reduce_sum: AllReduceSum) -> None:
        """Add up the workers' sums; afterwards every worker holds the whole."""
        self.count = all_reduce_sum(self.count)
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

    def ridged(self, ridge: float) -> Tensor:
        """The covariance [P, D, D] with a share `ridge` of the mean variance on its diagonal."""
        covariance_PDD = self.covariance()
        variances_PD = covariance_PDD.diagonal(dim1=1, dim2=2)
        scale = float(variances_PD.mean())
        # Images that are all alike have none.
        variances_PD.add_(ridge * (scale if scale > 0 else 1.0))
        return covariance_PDD

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
        variance = float(covariance.diagonal(dim1=1, dim2=2).mean())
        # Features that do not vary: below a millionth of their size is rounding.
        least = 1e-6 * float(sums.mean().square().mean()) or 1.0
        covariance.diagonal(dim1=1, dim2=2).add_(ridge * max(variance, least))
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
    """What P distances of normal images are usually: a mean and a spread for every position."""

    # Images say little of one position if they are few: its own mean and variance count as `n` images beside so many of
    # the overall ones.
    PRIOR = 10.0
    mean: Tensor
    spread: Tensor

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions))
        self.register_buffer("spread", torch.ones(positions))

    def fit_positions(self, sums_3P: Tensor) -> None:
        """Take each position's scale from all-reduced sums of raw distances [3, P]: counts, sums, sums of squares."""
        n, mean, variance = _moments(sums_3P)
        _, overall_mean, overall_variance = _moments(sums_3P.sum(1, keepdim=True))
        mean = (n * mean + self.PRIOR * overall_mean) / (n + self.PRIOR)
        variance = (n * variance + self.PRIOR * overall_variance) / (n + self.PRIOR)
        self.mean.copy_(mean)
        self.spread.copy_(_spread(variance))

    def fit_level(self, sums_3P: Tensor) -> None:
        """Shift and stretch all positions alike, so that these distances, already scaled, have mean 0 and spread 1.

        Distances of the images that the Gaussians were fitted on are too low; held-out ones are not.
        """
        # Sums lie in host memory, where every rank adds them up.
        _, mean, variance = _moments(sums_3P.sum(1, keepdim=True))
        self.mean += mean.to(self.mean) * self.spread
        self.spread *= _spread(variance).to(self.spread)

    def forward(self, distances_BP: Tensor) -> Tensor:
        """How many spreads each distance lies above the mean of normals, [B, P]."""
        return (distances_BP - self.mean) / self.spread


def sums_of(distances_BP: Tensor) -> Tensor:
    """Counts, sums and sums of squares over the batch, [3, P] in float64: they add up over batches and workers."""
    x = distances_BP.detach().double().cpu()
    return torch.stack([torch.ones_like(x), x, x.square()]).sum(1)


def _moments(sums_3P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, variance) of each column."""
    count, total, squares = sums_3P
    n = count.clamp_min(1)
    return n, total / n, (squares / n - (total / n).square()).clamp_min(0)


def _spread(variance: Tensor) -> Tensor:
    # Normals that are all alike leave a score as it is.
    return torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
