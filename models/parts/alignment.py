"""How FYD's image transformer learns to bring images into one frame.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.detector import finite_or_stop
from models.parts.agreement import alignment_loss, consistency_loss, drift_loss
from models.parts.rates import cosine, set_rate
from models.parts.stn import SpatialTransformer, random_movements, warp
from models.runtime import Runtime

# Adam's rate, with cosine decay.
LR = 1e-3
# How far copies of an image are turned and shifted, for the transformer to learn to undo.
MOVED_DEG, MOVED_SHIFT = 20.0, 0.1
# What different images' pixels weigh beside the movements of copies.
PAIRS = 0.1


class Alignment:
    """The fit of a transformer: its losses and its optimizer."""

    def __init__(self, transformer: SpatialTransformer, epochs: int, runtime: Runtime) -> None:
        self.size_px = transformer.size_px
        self.epochs = epochs
        self.runtime = runtime
        self.network = runtime.wrap(transformer)
        self.optimizer = torch.optim.Adam(transformer.parameters(), lr=LR)
        # Movements are drawn anew in each.
        self.steps = 0
        self.epoch = 0

    def step(self, images_BCHW: Tensor, total: int) -> dict[str, Tensor]:
        """Two moved copies of each image: both have to be seen in one frame, and images of all ranks alike in it."""
        count = len(images_BCHW)
        pooled = F.adaptive_avg_pool2d(images_BCHW, self.size_px)
        moved = self._movements(total, images_BCHW.shape[2] / images_BCHW.shape[3]).to(images_BCHW)
        copies = warp(pooled.repeat(2, 1, 1, 1), moved)
        transform = self.network(copies)
        first, second = (self.runtime.gather(rows, total) for rows in (moved @ transform).split([count, count]))
        aligned = self.runtime.gather(warp(copies[:count], transform[:count]), total)
        between_copies, between_images = consistency_loss(first, second), alignment_loss(aligned)
        loss = between_copies + drift_loss(first) + PAIRS * between_images
        losses = {"loss": loss.detach(), "copies": between_copies.detach(), "pairs": between_images.detach()}
        finite_or_stop("align", losses)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return losses

    def _movements(self, total: int, aspect: float) -> Tensor:
        """This rank's, of the first copies and then of the second, [2 B, 3, 3]: drawn for all images on every rank."""
        draw = torch.Generator().manual_seed(self.runtime.seed * 1_000_003 + self.steps)
        bounds = {"max_angle_deg": MOVED_DEG, "max_shift": MOVED_SHIFT, "aspect": aspect}
        return torch.cat([random_movements(total, draw, **bounds)[self.runtime.mine(total)] for _ in range(2)])

    def end_epoch(self) -> None:
        """Lower the rate: cosine to zero."""
        self.epoch += 1
        set_rate(self.optimizer, LR * cosine(self.epoch, self.epochs))

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint; the transformer's weights are the detector's."""
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.epoch = state["steps"], state["epoch"]
