"""SSM: Self-Supervised Masking (Huang et al., IEEE Transactions on Multimedia 25, 2023, arXiv 2205.06568).

A U-Net learns to paint in what random masks hide of normal images, and to predict the masks.
At scoring, masks of several cell sizes hide every pixel once; what comes back unlike the image is suspect.
Then the masks may be refined: what looked normal is uncovered, so that a defect is painted in from a surrounding that
is known to be sound.

Departures from the paper and its published code (`--preset paper` takes back those marked *):

* All is done on a grid of 32 pixels a side*.
* Cells are shares of the image: an eighth, a quarter and a half of its shorter side*, larger than the rims from which a
  lesion can be painted in again.
* Masks of training are those of scoring*; the code trains on three disjoint ones that are drawn anew each step.
* Normal images are learned mirrored, too*.
* `score=auto`*: errors by gradient vectors and by values, of every cell size or of all, over the image or its worst
  part; which of these is told by synthetic defects in held-out normals.
  `score=published` is the code's sum of the maximum of gradient similarity and of the mean squared error; its parts are
  z-scored by held-out normals, never by the test set.
* Masks at scoring are a checkerboard and its complement, as in the paper's figure; the code draws disjoint ones.
* `refine=disjoint` is the code's rule (uncover blocks in every mask), `refine=joint` the figure's (one mask that hides
  all that is suspect); the visible area only grows, and pixels that no mask hides are told by counting.
  What is uncovered keeps its error of the pass before; in the code it has none any more, so that errors which told are
  lost, and an image that is uncovered as a whole, as others than normal ones are, scores lowest of all.
  By default there is a single pass*.
  The threshold below which a place counts as normal is a quantile of held-out normals; the code's constant 0.96 means
  something else at every image size and every set of cells.
  Training shows more of the image in half of its steps where refinement will; the code never trains that.
* `mask_blocks` tell the decoder what is visible; the paper has them, the default does not*: image AUROC was two to
  three points higher without them, with every seed.
* Borders are reflected in every filter, and smoothing is two-dimensional (the code's smooths rows alone).
* The learning rate falls once, to a tenth after four fifths of the epochs; the code's falls three times.
  The last epoch is kept; the code keeps the one with the best test AUROC.

Shape suffixes: B batch, C channels, H height, W width, K cell sizes, N masks of one cell size, M maps.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.detector import Batch, Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating
from models.errors import ConfigError
from models.parts.error_score import WAYS, ErrorScore, ErrorScoreFit
from models.parts.histogram import LogHistogram
from models.parts.maps import enlarged, gaussian_blur, resampled
from models.parts.masks import BLOCKS, checkerboard_masks, compose, training_masks
from models.parts.rates import steps
from models.parts.reconstruction import SMOOTHING, ReconstructionLearner, fitting
from models.parts.similarity import gms_map, gradient_distance, reconstruction_loss
from models.parts.unet import UNet, grid_px
from models.runtime import Runtime

SCHEDULE = steps(0.8, factor=0.1)
WEIGHT_DECAY = 1e-5
# Share of a block that must look normal to uncover it, and of held-out normals' places that look normal.
NORMAL_SHARE, NORMAL_QUANTILE = 0.8, 0.95
# Hidden share up to which one mask can hide all that is suspect.
JOINT_AT_MOST = 0.6
# Gradients are compared at this many sizes, each half of the one before.
SCALES = 3


class SSMConfig(TrainedConfig):
    """SSM's options; the defaults suit CPUs."""

    COUNTS_WHERE: ClassVar = {"refine_steps": ("refine",)}

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=16, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    # Channels at full resolution.
    width: int = Field(default=8, ge=1)
    # Side in pixels of the grid on which all is done, of a square of as many pixels; 0: the input's own.
    grid: int = Field(default=32, ge=0, le=256)
    # How many of the cells that are hidden as a whole lie along the image's shorter side.
    cells_across: tuple[int, ...] = Field(default=(8, 4, 2), min_length=1)
    # Of training: those of scoring, or as published three that are drawn.
    masks: Literal["checkerboard", "disjoint"] = "checkerboard"
    mirrored: bool = True
    mask_blocks: bool = False
    # What the guess of the masks weighs: 0.01 in the published checkpoint's name, 1 in the published script.
    lambda_mask: float = Field(default=0.01, ge=0)
    refine: Literal["none", "disjoint", "joint"] = "none"
    refine_steps: int = Field(default=1, ge=1, le=5)
    score: Literal["auto", "published"] = "auto"


class SSMLearner(ReconstructionLearner["SSM"]):
    """Phases: `paint`; over held-out normals `threshold` (of refinement) and `scale` (of the score)."""

    def __init__(self, detector: SSM, runtime: Runtime, before: tuple[Phase, ...] = ()) -> None:
        """`before` are phases of what the network begins from."""
        config = self.config = detector.config
        refining = (Phase("threshold", 1, "held_out"),) if config.refine != "none" else ()
        phases = (*before, Phase("paint", config.epochs), *refining, Phase("scale", 1, "held_out"))
        super().__init__(
            detector, detector.network, runtime, phases, config.lr, SCHEDULE, WEIGHT_DECAY, training=len(before)
        )
        # Of painting; masks are drawn by their number.
        self.steps = 0
        self._histogram = LogHistogram(1e-5, 2.0)
        self._scores = ErrorScoreFit(detector.error_score, detector.errors, runtime)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.steps += 1
        # By seed and step alone: the same masks on every rank and after a restart.
        generator = torch.Generator().manual_seed(self.runtime.seed * 1_000_003 + self.steps)
        masks = training_masks(
            self.detector.cells,
            self.detector.size_px,
            generator,
            disjoint=self.config.masks == "disjoint",
            uncover=self.config.refine != "none",
        ).to(batch.images)
        images_BCHW = self.detector.on_grid(batch.images)
        mirror = self.config.mirrored and float(torch.rand((), generator=generator)) < 0.5
        x_BCHW = images_BCHW.flip(3) if mirror else images_BCHW
        n, count = len(masks), len(x_BCHW)
        visible = masks.repeat_interleave(count, 0)
        painted, guessed = self.detector.paint(
            torch.cat([self.guess(x_BCHW, batch.positions, mask) for mask in masks]), visible, self.network
        )
        hidden = 1 - masks.unsqueeze(1)
        whole = (painted.unflatten(0, (n, count)) * hidden).sum(0) + x_BCHW * (1 - hidden.sum(0))
        mask_loss = self.runtime.mean(F.mse_loss(guessed, visible, reduction="none"))
        terms = reconstruction_loss(x_BCHW, whole, self.runtime.mean)
        # The published loss adds the guesses of all masks up; their mean times their number is that sum.
        return terms | {"loss": terms["loss"] + n * self.config.lambda_mask * mask_loss, "mask": mask_loss}

    def guess(self, images_BCHW: Tensor, positions_B: Tensor, mask_1HW: Tensor) -> Tensor:
        """What the network is given of training images."""
        del positions_B
        return self.detector.guess(images_BCHW, mask_1HW)

    def measure(self, batch: Batch) -> None:
        if self.phase == "scale":
            self._scores.step(batch)
            return
        # Of a small last batch there may be none here.
        if len(batch.images):
            self._histogram.add(
                self.detector.suspicion(self.detector.first_errors(self.detector.on_grid(batch.images)))
            )

    def end_epoch(self) -> None:
        super().end_epoch()
        if self.phase == "threshold":
            self._histogram.all_reduce(self.runtime.all_reduce_sum)

    def finish(self, phase: str) -> None:
        if phase == "scale":
            self._scores.finish(next(iter(self.detector.ways)) if self.config.score == "published" else "auto")
        elif phase == "threshold":
            self.detector.normal_below.fill_(self._histogram.quantile(NORMAL_QUANTILE))

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | {"steps": self.steps, "histogram": self._histogram.counts}
        return state | self._scores.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps, self._histogram.counts = state["steps"], state["histogram"]
        self._scores.load_state_dict(state)


class SSM(Detector):
    """The U-Net, the threshold of refinement, and the scale of the score."""

    normal_below: Tensor
    masks: Tensor
    cell_weights: Tensor

    def __init__(self, config: SSMConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        # Nothing here is pretrained.
        del pretrained
        super().__init__()
        self.config: SSMConfig = config
        self.spec = spec
        self.size_px = grid_px(config.grid, spec)
        side = min(self.size_px)
        if min(config.cells_across) < 2 or max(config.cells_across) > side:
            raise ConfigError(
                "cells_across counts cells along the shorter side: from 2 to as many as it has pixels.",
                f"{list(config.cells_across)} at {self.size_px[0]}x{self.size_px[1]}",
                "Choose others with --set cells_across=[8,4].",
            )
        # Pixels a side.
        self.cells = tuple(round(side / across) for across in config.cells_across)
        skips: list[nn.Module | None] = [nn.Identity() for _ in range(4)]
        self.network = UNet(
            width=config.width,
            in_channels=spec.channels,
            out_channels=spec.channels + 1,
            bridges=skips,
            mask_blocks=config.mask_blocks,
        )
        self.register_buffer("masks", torch.stack([checkerboard_masks(c, self.size_px) for c in self.cells]), False)
        areas = torch.tensor([float(cell) ** 2 for cell in self.cells])
        self.register_buffer("cell_weights", areas / areas.sum(), False)
        self.register_buffer("normal_below", torch.zeros(()))
        self.error_score = ErrorScore(self.ways)

    @property
    def ways(self) -> dict[str, tuple[int, float]]:
        """How to score the maps of `judge`."""
        if self.config.score == "published":
            # The hottest pixel, and the mean of squared errors.
            return {"max": (0, 0.0), "mse": (1, 1.0)}
        sets = ("all", *map(str, self.cells))
        return {
            f"{name}, cells {cells}": (2 * number + of, share)
            for number, cells in enumerate(sets)
            for name, (of, share) in WAYS.items()
        }

    @property
    def at_once(self) -> int:
        """How many images are painted in at once: how sums are rounded hangs on it, which a threshold shows."""
        return 1 if self.config.refine != "none" else fitting(self.masks.numel() * self.spec.channels)

    @property
    def one_graph(self) -> bool:
        # Of a batch: images that are painted in one by one are none.
        return self.config.score == "auto" and self.at_once > 1

    @property
    def blur(self) -> float:
        """Sigma in pixels of heatmaps, and of what a threshold is put to."""
        return SMOOTHING * self.size_px[0] / 128

    def on_grid(self, images_BCHW: Tensor) -> Tensor:
        """The images resampled by area to the grid; those that are on it as they are."""
        if images_BCHW.shape[2:] == self.size_px:
            return images_BCHW
        return resampled(images_BCHW, self.size_px, "area")

    def guess(self, images_BCHW: Tensor, mask_1HW: Tensor) -> Tensor:
        """The images with what the network is given where the mask hides them: grey."""
        return images_BCHW * mask_1HW + 0.5 * (1 - mask_1HW)

    def guesses(self, images_BCHW: Tensor, masks_KN1HW: Tensor) -> Tensor:
        """`guess` by many masks, [B, K, N, C, H, W]."""
        found = torch.stack([self.guess(images_BCHW, mask) for mask in masks_KN1HW.flatten(0, 1)], 1)
        return found.unflatten(1, masks_KN1HW.shape[:2])

    def paint(
        self, guesses_BCHW: Tensor, visible_B1HW: Tensor, network: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """From images with guesses where they are hidden: reconstructions [B, C, H, W], and the masks [B, 1, H, W]."""
        out_BCHW: Tensor = (network or self.network)(2 * guesses_BCHW - 1, visible_B1HW)
        return self.begin(guesses_BCHW) + out_BCHW[:, :-1] / 2, out_BCHW[:, -1:]

    def begin(self, guesses_BCHW: Tensor) -> Tensor | float:
        """What the network's output is added to: the middle of the range."""
        del guesses_BCHW
        return 0.5

    def judge(self, images_BCHW: Tensor, whole_BKCHW: Tensor) -> Tensor:
        """How unlike images their reconstructions are, [M, B, H, W].

        By gradients and by values: of all cell sizes, and of each; as published: by gradients, smoothed, and squared.
        """
        like_BKCHW = images_BCHW.unsqueeze(1)
        if self.config.score == "published":
            pairs = like_BKCHW.expand_as(whole_BKCHW).flatten(0, 1), whole_BKCHW.flatten(0, 1)
            gms_BKHW = gms_map(*pairs).unflatten(0, whole_BKCHW.shape[:2])
            combined_BHW = (self.cell_weights.view(-1, 1, 1) * gms_BKHW).sum(1)
            squares_BHW = (whole_BKCHW - like_BKCHW).square().mean((1, 2))
            return torch.stack([gaussian_blur(combined_BHW, self.blur), squares_BHW])
        gradient_BKHW = gradient_distance(like_BKCHW, whole_BKCHW, SCALES)
        difference_BKHW = (like_BKCHW - whole_BKCHW).abs().mean(2)
        found_K2BHW = torch.stack([gradient_BKHW, difference_BKHW]).permute(2, 0, 1, 3, 4)
        return torch.cat([found_K2BHW.mean(0), found_K2BHW.flatten(0, 1)])

    def examine(self, images_BCHW: Tensor, guesses_BKNCHW: Tensor, masks_KN1HW: Tensor) -> Tensor:
        """What `judge` finds where these masks hide images; fewer than the cell sizes count for all of them."""
        visible = masks_KN1HW.expand_as(guesses_BKNCHW[:, :, :, :1]).flatten(0, 2)
        painted, _ = self.paint(guesses_BKNCHW.flatten(0, 2), visible)
        # A score is a small difference divided by its small spread among normals: float32 would show.
        painted_BKNCHW = painted.double().clamp(0.0, 1.0).unflatten(0, (-1, *masks_KN1HW.shape[:2]))
        x_BCHW = images_BCHW.double()
        whole_BKCHW = compose(x_BCHW, painted_BKNCHW, 1 - masks_KN1HW)
        return self.judge(x_BCHW, whole_BKCHW.expand(-1, len(self.masks), -1, -1, -1))

    def first_errors(self, images_BCHW: Tensor) -> Tensor:
        """The maps [M, B, H, W] of a single pass."""
        # Of all images at once: a mask takes one factorisation.
        guesses = self.guesses(images_BCHW, self.masks)
        if len(images_BCHW) <= self.at_once:
            return self.examine(images_BCHW, guesses, self.masks)
        parts = zip(torch.split(images_BCHW, self.at_once), torch.split(guesses, self.at_once), strict=True)
        return torch.cat([self.examine(*part, self.masks) for part in parts], 1)

    def errors(self, images_BCHW: Tensor) -> Tensor:
        """The maps [M, B, H, W] of the last pass, on the grid."""
        images_BCHW = self.on_grid(images_BCHW)
        found = self.first_errors(images_BCHW)
        if self.config.refine == "none":
            return found
        each = zip(images_BCHW.unsqueeze(1), found.unsqueeze(2).unbind(1), strict=True)
        return torch.cat([self.refined(*one)[0] for one in each], 1)

    def refined(self, image_1CHW: Tensor, found_M1HW: Tensor) -> tuple[Tensor, Tensor]:
        """All passes over one image after the first: the last maps [M, 1, H, W], and what is uncovered, [H, W].

        What is uncovered keeps the error of when it was hidden last; as published it has none any more, and an image
        that is uncovered as a whole is as normal as can be, whatever it shows.
        """
        uncovered = torch.zeros(self.size_px, dtype=image_1CHW.dtype, device=image_1CHW.device)
        for _ in range(self.config.refine_steps):
            uncovered = torch.maximum(uncovered, self.normal_blocks(self.suspicion(found_M1HW)[0]))
            joint = self.config.refine == "joint" and float(1 - uncovered.mean()) <= JOINT_AT_MOST
            masks = uncovered.expand(1, 1, 1, -1, -1) if joint else torch.maximum(self.masks, uncovered)
            again_M1HW = self.examine(image_1CHW, self.guesses(image_1CHW, masks), masks)
            seen = uncovered > 0
            found_M1HW = again_M1HW if self.config.score == "published" else torch.where(seen, found_M1HW, again_M1HW)
        return found_M1HW, uncovered

    def suspicion(self, maps_MBHW: Tensor) -> Tensor:
        """What the threshold is put to, [B, H, W]: errors by gradients, smoothed."""
        return maps_MBHW[0] if self.config.score == "published" else gaussian_blur(maps_MBHW[0], self.blur)

    def normal_blocks(self, found_HW: Tensor) -> Tensor:
        """1 where a block looks normal, as enough of it lies below the threshold, [H, W]."""
        block = (self.size_px[0] // BLOCKS, self.size_px[1] // BLOCKS)
        normal = (found_HW < self.normal_below).to(self.masks)
        share = F.avg_pool2d(normal.expand(1, 1, -1, -1), block)
        blocks = (share > NORMAL_SHARE).to(self.masks)
        return F.interpolate(blocks, self.size_px, mode="nearest")[0, 0]

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            maps = self.errors(images)
            image, heatmap = self.error_score(maps)
            if self.config.score == "published":
                mean, spread = self.error_score.level.unbind(1)
                image = ((self.error_score.every_way(maps) - mean) / spread).sum(1)
            else:
                heatmap = gaussian_blur(heatmap, self.blur)
            heatmap = enlarged(heatmap.float(), self.spec.size_px)
        return Scores(image.float(), heatmap)

    def learner(self, runtime: Runtime) -> SSMLearner:
        return SSMLearner(self, runtime)
