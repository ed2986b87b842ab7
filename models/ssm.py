"""SSM: Self-Supervised Masking (Huang et al., IEEE Transactions on Multimedia 25, 2023, arXiv 2205.06568).

A U-Net learns to paint in what random masks hide of normal images, and to predict the masks. At scoring, masks of
several cell sizes hide every pixel once; what comes back unlike the image is suspect. Then the masks are refined: what
looked normal is uncovered, so that a defect is painted in from a surrounding that is known to be sound.

Departures from the paper and its published code:

* The threshold below which a place counts as normal is a quantile of held-out normals (`refine_quantile`). The code's
  constant 0.96 means something else at every image size (`code_threshold` gives the equivalent).
* Masks at scoring are a fixed checkerboard and its complement by default, as in the paper's figure; the code's random
  disjoint masks (`masks=disjoint`) come from a seeded generator of their own.
* `refine=disjoint` is the code's rule (uncover blocks in every mask), `refine=joint` the figure's (one mask that hides
  all that is suspect); the visible area only grows, and pixels that no mask hides are told by counting. The default is
  a single pass: on real images refinement was measured to cost 4 to 6 points of AUROC, and twice the time.
* `mask_blocks` tell the decoder what is visible; the paper has them, the default does not: image AUROC was two to three points
  higher without them, with every seed. What is hidden is then told by the input alone, where it is mid-grey.
* Borders are reflected in every filter, smoothing is two-dimensional (`legacy_1d` is the code's, which smooths rows
  alone), and the score's two parts are z-scored by held-out normals, never by the test set.
* `color_weight` adds the absolute difference to the similarity map, which cannot see a uniform change of brightness.
* `score=mean` takes the map's mean, `max` its maximum, `max+mse` the code's sum of maximum and mean squared error.
* `mask_variety` shows more of the image in half of the steps, as refined masks do; the code never trains that.
* The last epoch is kept. The code keeps the one with the best test AUROC.
* `model=autoencoder` is no part of the paper: the same network without masks or skips, to measure what masks are worth.

Each image is scored by itself, all of its masks in one batch: refinement compares with a threshold, and there not even
the last digit may hang on batch mates.

Shape suffixes: B batch, C channels, H height, W width, K cell sizes, N masks of one cell size.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.detector import (
    Batch,
    Detector,
    DetectorConfig,
    InputSpec,
    Phase,
    Runtime,
    Scores,
    evaluating,
    finite_or_stop,
)
from models.errors import ConfigError
from models.parts.histogram import LogHistogram
from models.parts.maps import gaussian_blur
from models.parts.similarity import gms_map, reconstruction_loss
from models.parts.unet import UNet, check_size

BLOCKS = 16  # a side, of the grid on which places are uncovered
DECAY_AT = 0.8  # share of the epochs after which the learning rate falls to a tenth
JOINT_AT_MOST = 0.6  # hidden share up to which one mask can hide all that is suspect


class SSMConfig(DetectorConfig):
    """SSM's options; the defaults suit 64 to 128 px on CPU. The paper's: width 64, mask blocks, lr 1e-4, batch 32,
    50 epochs."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=8, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)
    model: Literal["masked", "autoencoder"] = "masked"
    width: int = Field(default=16, ge=1)
    cells: tuple[int, ...] = (2, 4, 8)  # pixels; the code adds 16 at 256 px
    mask_blocks: bool = False
    lambda_mask: float = Field(default=0.01, ge=0)  # 0.01 in the published checkpoint's name, 1 in the published script
    mask_variety: bool = True
    masks: Literal["checkerboard", "disjoint"] = "checkerboard"  # at scoring
    mask_seed: int = 8
    refine: Literal["none", "disjoint", "joint"] = "none"
    refine_steps: int = Field(default=1, ge=1, le=5)
    refine_quantile: float = Field(default=0.95, gt=0, lt=1)
    refine_ratio: float = Field(default=0.8, gt=0, lt=1)  # share of a block that must look normal to uncover it
    gms_scales: int = Field(default=4, ge=1, le=4)
    cell_weights: Literal["squared", "uniform"] = "squared"  # squared: by the cell's area, as the code
    color_weight: float = Field(default=0.0, ge=0)
    smoothing: float = Field(default=7.0, ge=0)  # sigma in pixels at 128 px, scaled with the image's height
    legacy_1d: bool = False
    score: Literal["max", "mean", "max+mse"] = "mean"


def disjoint_masks(cell: int, n: int, size_px: tuple[int, int], generator: torch.Generator) -> Tensor:
    """`n` masks [n, 1, H, W], 0 hidden and 1 visible, whose hidden cells tile the image once."""
    rows, columns = (-(-side // cell) for side in size_px)
    owner = (torch.randperm(rows * columns, generator=generator) % n).view(rows, columns)
    return _masks_of(owner, n, cell, size_px)


def checkerboard_masks(cell: int, size_px: tuple[int, int]) -> Tensor:
    """A checkerboard and its complement, [2, 1, H, W]."""
    rows, columns = (torch.arange(-(-side // cell)) for side in size_px)
    return _masks_of((rows.unsqueeze(1) + columns) % 2, 2, cell, size_px)


def _masks_of(owner: Tensor, n: int, cell: int, size_px: tuple[int, int]) -> Tensor:
    pixels = owner.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[: size_px[0], : size_px[1]]
    return torch.stack([(pixels != mask).float() for mask in range(n)]).unsqueeze(1)


def code_threshold(size_px: int, cells: tuple[int, ...]) -> float:
    """What the published code's threshold of 0.96 means on the weighted map of this module; negative if it never holds.

    Its score is the sum over cells of (d - 0.75) / (size / cell)**2, and normal is 255 * score < -0.96.
    """
    weights = [(cell / size_px) ** 2 for cell in cells]
    return (0.75 * sum(weights) - 0.96 / 255) / sum(weights)


class SSM(Detector):
    """The U-Net, the threshold of refinement, and the scale of the score's parts."""

    normal_below: Tensor
    score_mean: Tensor
    score_spread: Tensor
    uncovered_share: Tensor
    masks: Tensor
    cell_weights: Tensor

    def __init__(self, config: SSMConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        del pretrained  # nothing here is
        super().__init__()
        check_size(spec)
        self.config: SSMConfig = config
        self.spec = spec
        self.size_px = (spec.height_px, spec.width_px)
        if not config.cells or 2 * max(config.cells) > min(self.size_px):
            raise ConfigError(
                "cells are the masks' pixels a side, at most half the image's.",
                f"{list(config.cells)} at {spec.height_px}x{spec.width_px}",
                "Choose smaller ones with --set cells=[2,4].",
            )
        self.masked = config.model == "masked"
        skip: list[nn.Module | None] = [nn.Identity() if self.masked else None for _ in range(4)]
        self.network = UNet(
            width=config.width,
            out_channels=4 if self.masked else 3,
            bridges=skip,
            mask_blocks=self.masked and config.mask_blocks,
        )
        self.register_buffer("masks", self._masks(), persistent=False)
        weights = torch.tensor([float(cell) ** 2 if config.cell_weights == "squared" else 1.0 for cell in config.cells])
        self.register_buffer("cell_weights", weights / weights.sum(), persistent=False)
        self.register_buffer("normal_below", torch.zeros(()))  # tau
        self.register_buffer("score_mean", torch.zeros(2))  # of the map's maximum and of the mean squared error
        self.register_buffer("score_spread", torch.ones(2))
        self.register_buffer("uncovered_share", torch.zeros(()))  # of held-out normals, by the last refinement

    def _masks(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.config.mask_seed)
        return torch.stack(
            [
                checkerboard_masks(cell, self.size_px)
                if self.config.masks == "checkerboard"
                else disjoint_masks(cell, 3, self.size_px, generator)
                for cell in self.config.cells
            ]
        )

    def paint(self, images_BCHW: Tensor, visible_B1HW: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Reconstructions [B, 3, H, W] in [0, 1], and masks as the network guesses them [B, 1, H, W]."""
        x = 2 * images_BCHW - 1
        out = self.network(x if visible_B1HW is None else x * visible_B1HW, visible_B1HW)
        return (out[:, :3] + 1) / 2, out[:, 3:] if self.masked else None

    def difference(self, image_1CHW: Tensor, painted_KCHW: Tensor) -> Tensor:
        """How unlike an image its reconstructions are, weighted over cell sizes and smoothed, [H, W] in [0, 2]."""
        same = image_1CHW.expand_as(painted_KCHW)
        maps = gms_map(same, painted_KCHW, self.config.gms_scales)
        if self.config.color_weight:
            maps = maps + self.config.color_weight * (same - painted_KCHW).abs().mean(1)
        weights = self.cell_weights if self.masked else torch.ones_like(self.cell_weights[:1])
        combined = (weights.view(-1, 1, 1) * maps).sum(0)
        sigma_px = self.config.smoothing * self.spec.height_px / 128
        return gaussian_blur(combined, sigma_px, columns_too=not self.config.legacy_1d)

    def examine(self, image_1CHW: Tensor, uncovered_HW: Tensor) -> tuple[Tensor, Tensor]:
        """One pass: the smoothed map [H, W] and the mean squared error, with some places visible in every mask."""
        if not self.masked:
            painted, _ = self.paint(image_1CHW, None)
            return self.difference(image_1CHW, painted), (painted - image_1CHW).square().mean()
        masks_KN1HW = torch.maximum(self.masks, uncovered_HW)
        cells, n = masks_KN1HW.shape[:2]
        flat = masks_KN1HW.flatten(0, 1)
        painted, _ = self.paint(image_1CHW.expand(len(flat), -1, -1, -1), flat)
        return self._compose(image_1CHW, painted.reshape(cells, n, *painted.shape[1:]), 1 - masks_KN1HW)

    def _compose(self, image_1CHW: Tensor, painted_KN3HW: Tensor, hidden_KN1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Every pixel from the masks that hid it; where none did, the image itself."""
        times = hidden_KN1HW.sum(1)
        mean = (painted_KN3HW * hidden_KN1HW).sum(1) / times.clamp_min(1)
        whole = torch.where(times > 0, mean, image_1CHW)
        return self.difference(image_1CHW, whole), (whole - image_1CHW).square().mean()

    def refined(self, image_1CHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All passes over one image: the last map, the last mean squared error, and the uncovered share."""
        uncovered = torch.zeros(self.size_px, dtype=image_1CHW.dtype, device=image_1CHW.device)
        found, error = self.examine(image_1CHW, uncovered)
        if self.config.refine == "none" or not self.masked:
            return found, error, uncovered.mean()
        for _ in range(self.config.refine_steps):
            uncovered = torch.maximum(uncovered, self._normal_blocks(found))
            if self.config.refine == "joint" and float(1 - uncovered.mean()) <= JOINT_AT_MOST:
                visible = uncovered.expand(1, 1, *self.size_px)
                painted, _ = self.paint(image_1CHW, visible)
                cells = len(self.config.cells)
                found, error = self._compose(
                    image_1CHW, painted.expand(cells, 1, -1, -1, -1), 1 - visible.expand(cells, 1, -1, -1, -1)
                )
            else:
                found, error = self.examine(image_1CHW, uncovered)
        return found, error, uncovered.mean()

    def _normal_blocks(self, found_HW: Tensor) -> Tensor:
        """1 where a block looks normal: more than `refine_ratio` of it lies below the threshold, [H, W]."""
        block = (self.spec.height_px // BLOCKS, self.spec.width_px // BLOCKS)
        normal = (found_HW < self.normal_below).to(found_HW)
        share = F.avg_pool2d(normal.expand(1, 1, -1, -1), block)
        blocks = (share > self.config.refine_ratio).to(found_HW)
        return F.interpolate(blocks, self.size_px, mode="nearest")[0, 0]

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            maps, errors, _ = zip(*(self.refined(image.unsqueeze(0)) for image in images), strict=True)
            heatmap = torch.stack(maps)
            highest = heatmap.flatten(1).amax(1)
            if self.config.score != "max+mse":
                return Scores(highest if self.config.score == "max" else heatmap.flatten(1).mean(1), heatmap)
            parts = (torch.stack([highest, torch.stack(errors)], 1) - self.score_mean) / self.score_spread
            return Scores(parts.sum(1), heatmap)

    def learner(self, runtime: Runtime) -> SSMLearner:
        return SSMLearner(self, runtime)


class SSMLearner:
    """Phases: `paint`; then over held-out normals `threshold` (of refinement) and `scale` (of the score)."""

    def __init__(self, detector: SSM, runtime: Runtime) -> None:
        config = detector.config
        self.detector = detector.to(runtime.device)
        self.runtime = runtime
        self.config = config
        self.refines = detector.masked and config.refine != "none"
        self.phases = (
            Phase("paint", config.epochs),
            *((Phase("threshold", 1, "held_out"),) if self.refines else ()),
            Phase("scale", 1, "held_out"),
        )
        self.network = runtime.wrap(detector.network)
        self.optimizer = torch.optim.Adam(detector.network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.phase = ""
        self.epoch = 0  # finished epochs of the current phase
        self.steps = 0  # of painting; masks are drawn by their number
        self._histogram = LogHistogram(1e-5, 2.0)
        self._sums = torch.zeros(4, 2, dtype=torch.float64)  # counts, sums, squares; uncovered share and images

    def start(self, phase: str) -> None:
        self.phase, self.epoch = phase, 0
        self.detector.eval()
        if phase == "paint":
            self.network.train()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.images.to(self.runtime.device, non_blocking=True)
        if self.phase == "paint":
            return self._paint(images)
        with torch.no_grad():
            for image in images.unsqueeze(1):
                if self.phase == "threshold":
                    unseen = torch.zeros(self.detector.size_px, dtype=image.dtype, device=image.device)
                    self._histogram.add(self.detector.examine(image, unseen)[0])
                else:
                    found, error, uncovered = self.detector.refined(image)
                    parts = torch.stack([found.max(), error]).double().cpu()
                    share = torch.stack([uncovered.double().cpu(), torch.ones((), dtype=torch.float64)])
                    self._sums += torch.stack([torch.ones_like(parts), parts, parts.square(), share])
        return {}

    def _masks(self, generator: torch.Generator) -> Tensor:
        """Three masks [3, 1, H, W] of one drawn cell size; in half of the steps with blocks uncovered in all three."""
        cells, size_px = self.config.cells, self.detector.size_px
        cell = cells[int(torch.randint(len(cells), (), generator=generator))]
        masks = disjoint_masks(cell, 3, size_px, generator)
        if self.config.mask_variety and float(torch.rand((), generator=generator)) < 0.5:
            share = 0.3 + 0.65 * float(torch.rand((), generator=generator))
            shown = (torch.rand(1, 1, BLOCKS, BLOCKS, generator=generator) < share).float()
            masks = torch.maximum(masks, F.interpolate(shown, size_px, mode="nearest"))
        return masks

    def _paint(self, images: Tensor) -> dict[str, Tensor]:
        detector = self.detector
        self.steps += 1
        if detector.masked:
            # By seed and step alone: the same masks on every rank and after a restart.
            generator = torch.Generator().manual_seed(self.runtime.seed * 1_000_003 + self.steps)
            masks = self._masks(generator).to(images)
            n, count = len(masks), len(images)
            visible = masks.repeat_interleave(count, 0)
            x = (2 * images - 1).repeat(n, 1, 1, 1)
            out = self.network(x * visible, visible)
            painted = (out[:, :3].unflatten(0, (n, count)) + 1) / 2
            hidden = 1 - masks.unsqueeze(1)
            whole = (painted * hidden).sum(0) + images * (1 - hidden.sum(0))
            guessed = self.runtime.mean(F.mse_loss(out[:, 3:], visible, reduction="none"))
        else:
            whole = (self.network(2 * images - 1) + 1) / 2
            guessed = whole.new_zeros(())
        terms = reconstruction_loss(images, whole, self.config.gms_scales, self.runtime.mean)
        terms |= {"mask": guessed}
        # The published loss adds the guesses of the three masks up; a mean of them times three is that sum.
        loss = terms["mse"] + terms["gms"] + terms["ssim"] + 3 * self.config.lambda_mask * guessed
        losses = {"loss": loss.detach()} | {name: term.detach() for name, term in terms.items()}
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        finite_or_stop(self.phase, losses)
        self.optimizer.step()
        return losses

    def end_epoch(self) -> None:
        self.epoch += 1
        if self.phase == "threshold":
            self._histogram.all_reduce(self.runtime.all_reduce_sum)
        elif self.phase == "scale":
            self._sums = self.runtime.all_reduce_sum(self._sums)
        elif self.epoch == math.ceil(DECAY_AT * self.config.epochs):
            for group in self.optimizer.param_groups:
                group["lr"] = 0.1 * self.config.lr

    def finish(self, phase: str) -> None:
        if phase == "threshold":
            self.detector.normal_below.fill_(self._histogram.quantile(self.config.refine_quantile))
        elif phase == "scale":
            count, total, squares, share = self._sums
            mean = total / count
            variance = (squares - count * mean.square()).clamp_min(0) / (count - 1).clamp_min(1)
            self.detector.score_mean.copy_(mean)
            # One held-out image, or all alike: the parts keep their own scale.
            self.detector.score_spread.copy_(torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance)))
            self.detector.uncovered_share.fill_(float(share[0] / share[1]))

    def state_dict(self) -> dict[str, Any]:
        return {
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "steps": self.steps,
            "histogram": self._histogram.counts,
            "sums": self._sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.steps = state["epoch"], state["steps"]
        self._histogram.counts = state["histogram"]
        self._sums = state["sums"]
