"""FYD's losses, and the heads that its contrast trains beside the network.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts.batch_norm import BatchNorm2d


class AgreementHeads(nn.Module):
    """Projector and predictor of a map, as wide as `width` says."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()

        def narrow(before: int) -> list[nn.Module]:
            return [nn.Conv2d(before, width, 1), BatchNorm2d(width), nn.ReLU()]

        self.projector = nn.Sequential(*narrow(channels), *narrow(width), nn.Conv2d(width, width, 1))
        self.predictor = nn.Sequential(*narrow(width), nn.Conv2d(width, width, 1))

    def forward(self, map_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Projections and predictions [B, C, H, W]."""
        projected = self.projector(map_BCHW)
        return projected, self.predictor(projected)


def alignment_loss(aligned_BCHW: Tensor) -> Tensor:
    """Mean over pixels and pairs of images of their distance in colour (L_ICA, as mean instead of sum)."""
    difference = aligned_BCHW.unsqueeze(0) - aligned_BCHW.unsqueeze(1)
    distance = (difference.square().sum(2) + 1e-8).sqrt().flatten(2).mean(2)
    count = len(aligned_BCHW)
    return (distance.sum() - distance.diagonal().sum()) / max(1, count * (count - 1))


def consistency_loss(first_B33: Tensor, second_B33: Tensor) -> Tensor:
    """Mean squared distance between the frames in which two moved copies of each image are seen.

    A frame is the movement followed by the transform that was predicted of the moved copy: where that one undoes the
    movement, both copies are seen alike.
    """
    return (first_B33 - second_B33).square().sum((1, 2)).mean()


def drift_loss(frames_B33: Tensor) -> Tensor:
    """Squared distance of the mean frame from the identity: agreement alone leaves the common frame free."""
    identity = torch.eye(3, dtype=frames_B33.dtype, device=frames_B33.device)
    return (frames_B33.mean(0) - identity).square().sum()


def agreement_loss(predicted_BCHW: Tensor, projected_BCHW: Tensor) -> Tensor:
    """Minus the mean cosine between one image's prediction and another's projection, over positions and pairs (L_FA).

    Projections are targets: no gradient reaches them. All ordered pairs cost one sum over the batch.
    """
    p = F.normalize(predicted_BCHW, dim=1)
    z = F.normalize(projected_BCHW.detach(), dim=1)
    others = z.sum(0, keepdim=True) - z
    return -(p * others).sum(1).mean() / max(1, len(p) - 1)
