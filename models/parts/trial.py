"""Trying ways to score on held-out normals, as they are and with synthetic defects.

Shape suffixes: B batch, C channels, H height, W width, N held-out images, K kinds of defects, S ways to score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.detector import Batch
from models.parts.defects import KINDS, with_defects
from models.runtime import Runtime

# By how much less AUROC is chance: few images are held out, and their defects are drawn.
CHANCE = 0.01
# Held-out images that get synthetic defects; more of them would not change a choice among a few.
WITH_DEFECTS = 128


def first_best(normal_NS: Tensor, abnormal_NKS: Tensor) -> int:
    """The first way that finds as much as any; a difference within CHANCE is none.

    How much one finds is the mean of its AUROC over all kinds of defects.
    """
    normal_SN = normal_NS.T.sort().values.contiguous()
    abnormal_S = abnormal_NKS.flatten(0, 1).T.contiguous()
    # Ties count half. All kinds have as many images, so the mean over them is that over all images.
    below = torch.searchsorted(normal_SN, abnormal_S) + torch.searchsorted(normal_SN, abnormal_S, right=True)
    auroc_S = below.double().mean(1) / (2 * len(normal_NS))
    # Of equal ones argmax takes the first.
    return int((auroc_S >= auroc_S.max() - CHANCE).double().argmax())


class Trial:
    """Every way's scores of held-out normals and of their defects, gathered from all workers."""

    def __init__(self, every_way: Callable[[Tensor], Tensor], ways: int, runtime: Runtime) -> None:
        """`every_way` gives the scores [B, S] of images [B, C, H, W] by each of so many `ways`."""
        self.every_way, self.runtime = every_way, runtime
        # Of each held-out image: every way's score as it is, and with each defect; NaN where it got none.
        self.found = torch.zeros(0, 1 + len(KINDS), ways, dtype=torch.float64)

    def step(self, batch: Batch) -> None:
        """Count in this rank's share of a batch of held-out normals, whose images are on the device."""
        rows = self.found.new_full((len(batch.images), *self.found.shape[1:]), float("nan"))
        for row, image, position in zip(rows, batch.images, batch.positions.tolist(), strict=True):
            seen = image.unsqueeze(0)
            if position < WITH_DEFECTS:
                # By seed and position alone: the same defects whatever the batches and workers.
                seen = torch.cat([seen, with_defects(image, self.runtime.seed * 1_000_003 + position)])
            row[: len(seen)] = self.every_way(seen)
        self.found = torch.cat([self.found, self.runtime.gather(rows, batch.total)])

    def normal(self) -> Tensor:
        """Every way's scores of the images as they are, [N, S]."""
        return self.found[:, 0]

    def abnormal(self) -> Tensor:
        """Every way's scores of those that got defects, with each, [N, K, S]."""
        defective = ~self.found[:, 1:].isnan().flatten(1).any(1)
        return self.found[defective, 1:]

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, for a checkpoint."""
        return {"found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.found = state["found"]
