"""From errors at every pixel to an image's score: by gradients or values, of all of the image or of its worst part.

Gradients judge some kinds of images better and values others. Which, is told by synthetic defects in held-out normals.

Shape suffixes: B batch, C channels, H height, W width, M maps, N held-out images, K kinds of defects, S ways to score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from models.parts.trial import Trial, first_best
from models.runtime import Runtime

# Of which map, and of how large a share of its hottest pixels the mean is the score; the likeliest to serve first.
WAYS: dict[str, tuple[int, float]] = {
    "gradient_top": (0, 0.05),
    "gradient": (0, 1.0),
    "difference_top": (1, 0.05),
    "difference": (1, 1.0),
}
Way = Literal["auto", "gradient", "gradient_top", "difference", "difference_top"]


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
        return torch.stack([_mean_of_hottest(maps_MBHW[of], share) for of, share in self.ways.values()], 1)

    @property
    def of(self) -> int:
        """Which of an image's maps the chosen way scores."""
        return list(self.ways.values())[int(self.way)][0]

    def forward(self, maps_MBHW: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen way's score of each image [B], in spreads above the mean of normals, and its map [B, H, W]."""
        way = int(self.way)
        mean, spread = self.level[way]
        # The others, which sort maps too, are for choosing.
        of, share = list(self.ways.values())[way]
        return (_mean_of_hottest(maps_MBHW[of], share) - mean) / spread, maps_MBHW[of]

    def choose(self, normal_NS: Tensor, abnormal_NKS: Tensor, way: str) -> None:
        """Take every way's level, and the way that is asked for; `auto` is the first that finds as much as any."""
        self.level[:, 0] = normal_NS.mean(0)
        # One image, or all alike: scores keep their own scale.
        spread = normal_NS.std(0) if len(normal_NS) > 1 else torch.zeros_like(normal_NS[0])
        self.level[:, 1] = torch.where(spread > 0, spread, torch.ones_like(spread))
        self.way.fill_(first_best(normal_NS, abnormal_NKS) if way == "auto" else list(self.ways).index(way))


def _mean_of_hottest(map_BHW: Tensor, share: float) -> Tensor:
    """Of each image the mean of so large a share of its pixels, the hottest, [B]."""
    pixels_BP = map_BHW.flatten(1)
    return pixels_BP.topk(max(1, round(share * int(pixels_BP.shape[1]))), 1).values.mean(1)


class ErrorScoreFit(Trial):
    """What the ways find in held-out normals, as they are and with synthetic defects."""

    def __init__(self, score: ErrorScore, maps: Callable[[Tensor], Tensor], runtime: Runtime) -> None:
        """`maps` gives the errors [M, B, H, W] of images [B, C, H, W]."""
        super().__init__(lambda images: score.every_way(maps(images)), len(score.ways), runtime)
        self.score = score

    def finish(self, way: str) -> None:
        """Choose by all that was counted."""
        self.score.choose(self.normal(), self.abnormal(), way)
