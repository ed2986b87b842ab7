"""From errors at every pixel to an image's score: by gradients or values, of all of the image or of its worst part.

Gradients judge some kinds of images better and values others. Which, is told by synthetic defects in held-out normals.

Shape suffixes: B batch, H height, W width, M maps, N held-out images, K kinds of defects, S ways to score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.parts.defects import KINDS, with_defects
from models.runtime import Runtime

# Of which map, and of how large a share of its hottest pixels the mean is the score; the likeliest to serve first.
WAYS: dict[str, tuple[int, float]] = {
    "gradient_top": (0, 0.05),
    "gradient": (0, 1.0),
    "difference_top": (1, 0.05),
    "difference": (1, 1.0),
}
# By how much less AUROC is chance: few images are held out, and their defects are drawn.
CHANCE = 0.01
Way = Literal["auto", "gradient", "gradient_top", "difference", "difference_top"]
# Held-out images that get synthetic defects; more of them would not change a choice among four.
WITH_DEFECTS = 128


class ErrorScore(nn.Module):
    """The chosen way, and how every way scores normal images.

    Args:
        ways: as WAYS: by name which of an image's maps, and of how large a share of it the mean is the score.
    """

    way: Tensor
    level: Tensor

    def __init__(self, ways: Mapping[str, tuple[int, float]] = WAYS) -> None:
        super().__init__()
        self.ways = dict(ways)
        self.register_buffer("way", torch.zeros((), dtype=torch.int64))
        # Mean and spread of every way's scores of held-out normals.
        self.register_buffer("level", torch.tensor([[0.0, 1.0]] * len(ways), dtype=torch.float64))

    def every_way(self, maps_MBHW: Tensor) -> Tensor:
        """Every way's raw score of each image, [B, S], from its maps: its errors by gradients, by values, ..."""
        pixels_MBP = maps_MBHW.flatten(2)
        size = pixels_MBP.shape[2]
        scores = [
            pixels_MBP[of].topk(max(1, round(share * size)), 1).values.mean(1) for of, share in self.ways.values()
        ]
        return torch.stack(scores, 1)

    def forward(self, maps_MBHW: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen way's score of each image [B], in spreads above the mean of normals, and its map [B, H, W]."""
        way = int(self.way)
        mean, spread = self.level[way]
        of, _ = list(self.ways.values())[way]
        return (self.every_way(maps_MBHW)[:, way] - mean) / spread, maps_MBHW[of]

    def choose(self, normal_NS: Tensor, abnormal_NKS: Tensor, way: str) -> None:
        """Take every way's level, and the way that is asked for; `auto` is the first that finds as much as any.

        How much one finds is the mean of its AUROC over all kinds of defects; a difference within CHANCE is none.
        """
        self.level[:, 0] = normal_NS.mean(0)
        # One image, or all alike: scores keep their own scale.
        spread = normal_NS.std(0) if len(normal_NS) > 1 else torch.zeros_like(normal_NS[0])
        self.level[:, 1] = torch.where(spread > 0, spread, torch.ones_like(spread))
        if way != "auto":
            self.way.fill_(list(self.ways).index(way))
            return
        normal_SN = normal_NS.T.sort().values.contiguous()
        abnormal_S = abnormal_NKS.flatten(0, 1).T.contiguous()
        # Ties count half. All kinds have as many images, so the mean over them is that over all images.
        below = torch.searchsorted(normal_SN, abnormal_S) + torch.searchsorted(normal_SN, abnormal_S, right=True)
        auroc_S = below.double().mean(1) / (2 * len(normal_NS))
        # Of equal ones argmax takes the first.
        self.way.copy_((auroc_S >= auroc_S.max() - CHANCE).double().argmax())


class ErrorScoreFit:
    """What the ways find in held-out normals, as they are and with synthetic defects, gathered from all workers."""

    def __init__(self, score: ErrorScore, maps: Callable[[Tensor], Tensor], runtime: Runtime) -> None:
        """`maps` gives the errors [M, B, H, W] of images [B, C, H, W]."""
        self.score, self.maps, self.runtime = score, maps, runtime
        # Of each held-out image: every way's score as it is, and with each defect; NaN where it got none.
        self.found = torch.zeros(0, 1 + len(KINDS), len(score.ways), dtype=torch.float64)

    def step(self, images: Tensor, positions: Tensor, total: int) -> None:
        """Count in this rank's share of a batch of `total` held-out normals."""
        rows = self.found.new_full((len(images), *self.found.shape[1:]), float("nan"))
        for row, image, position in zip(rows, images, positions.tolist(), strict=True):
            seen = image.unsqueeze(0)
            if position < WITH_DEFECTS:
                # By seed and position alone: the same defects whatever the batches and workers.
                seen = torch.cat([seen, with_defects(image, self.runtime.seed * 1_000_003 + position)])
            row[: len(seen)] = self.score.every_way(self.maps(seen))
        self.found = torch.cat([self.found, self.runtime.gather(rows, total)])

    def finish(self, way: str) -> None:
        """Choose by all that was counted."""
        defective = ~self.found[:, 1:].isnan().flatten(1).any(1)
        self.score.choose(self.found[:, 0], self.found[defective, 1:], way)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, for a checkpoint."""
        return {"found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.found = state["found"]
