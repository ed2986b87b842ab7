"""SSM: Self-Supervised Masking (Huang et al., IEEE Transactions on Multimedia 25, 2023, arXiv 2205.06568).

A U-Net learns to paint in what random masks hide of normal images, and to predict the masks.
At scoring, masks of several cell sizes hide every pixel once; what comes back unlike the image is suspect.
Then the masks are refined: what looked normal is uncovered, so that a defect is painted in from a surrounding that is
known to be sound.

Departures from the paper and its published code:

* The threshold below which a place counts as normal is a quantile of held-out normals.
  The code's constant 0.96 means something else at every image size and every set of cells.
* Masks at scoring are a checkerboard and its complement, as in the paper's figure; the code draws disjoint ones.
* `refine=disjoint` is the code's rule (uncover blocks in every mask), `refine=joint` the figure's (one mask that hides
  all that is suspect); the visible area only grows, and pixels that no mask hides are told by counting.
  The default is a single pass: on real images refinement was measured to cost 4 to 6 points of AUROC, and twice the
  time.
* `mask_blocks` tell the decoder what is visible; the paper has them, the default does not: image AUROC was two to three
  points higher without them, with every seed.
  What is hidden is then told by the input alone, where it is mid-grey.
* Training shows more of the image in half of its steps, as refined masks do; the code never trains that.
* Borders are reflected in every filter, smoothing is two-dimensional (the code's smooths rows alone), and the score's
  two parts are z-scored by held-out normals, never by the test set.
* `score=mean` takes the map's mean, `max` its maximum, `max+mse` the code's sum of maximum and mean squared error.
* The learning rate falls once, to a tenth after four fifths of the epochs; the code's falls three times.
  The last epoch is kept; the code keeps the one with the best test AUROC.

Each image is scored by itself, all of its masks in one batch: refinement compares with a threshold, and there not even
the last digit may hang on batch mates.

Shape suffixes: B batch, C channels, H height, W width, K cell sizes, N masks of one cell size.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.detector import Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating
from models.errors import ConfigError
from models.parts.histogram import LogHistogram
from models.parts.maps import gaussian_blur
from models.parts.masks import BLOCKS, checkerboard_masks, training_masks
from models.parts.reconstruction import SMOOTHING, Decay, ReconstructionLearner, image_scores
from models.parts.similarity import gms_map, reconstruction_loss
from models.parts.unet import UNet, check_size
from models.runtime import Runtime

DECAY = Decay((0.8,), 0.1)
WEIGHT_DECAY = 1e-5
# Share of a block that must look normal to uncover it, and of held-out normals' places that look normal.
NORMAL_SHARE, NORMAL_QUANTILE = 0.8, 0.95
# Hidden share up to which one mask can hide all that is suspect.
JOINT_AT_MOST = 0.6


class SSMConfig(TrainedConfig):
    """SSM's options; the defaults suit 64 to 128 px on CPU."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=8, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    # Channels at full resolution.
    width: int = Field(default=16, ge=1)
    # Pixels a side of what masks hide as a whole.
    cells: tuple[int, ...] = (2, 4, 8)
    mask_blocks: bool = False
    # What the guess of the masks weighs: 0.01 in the published checkpoint's name, 1 in the published script.
    lambda_mask: float = Field(default=0.01, ge=0)
    refine: Literal["none", "disjoint", "joint"] = "none"
    refine_steps: int = Field(default=1, ge=1, le=5)
    score: Literal["max", "mean", "max+mse"] = "mean"

    @model_validator(mode="after")
    def _steps_are_of_a_refinement(self) -> Self:
        if self.refine == "none" and self.refine_steps != 1:
            raise ConfigError(
                "refine_steps counts where refine is on.", f"refine_steps={self.refine_steps}", "Leave it at 1."
            )
        return self


def compose(image_1CHW: Tensor, painted_KN3HW: Tensor, hidden_KN1HW: Tensor) -> Tensor:
    """Every pixel from the masks that hid it, [K, 3, H, W]; where none did, the image itself."""
    times = hidden_KN1HW.sum(1)
    mean = (painted_KN3HW * hidden_KN1HW).sum(1) / times.clamp_min(1)
    return torch.where(times > 0, mean, image_1CHW)


class SSMLearner(ReconstructionLearner["SSM"]):
    """Phases: `paint`; then over held-out normals `threshold` (of refinement) and `scale` (of the score)."""

    def __init__(self, detector: SSM, runtime: Runtime) -> None:
        self.config = detector.config
        phases = (
            Phase("paint", self.config.epochs),
            *((Phase("threshold", 1, "held_out"),) if self.config.refine != "none" else ()),
            Phase("scale", 1, "held_out"),
        )
        super().__init__(
            detector, detector.network, runtime, phases, lr=self.config.lr, decay=DECAY, weight_decay=WEIGHT_DECAY
        )
        # Of painting; masks are drawn by their number.
        self.steps = 0
        self._histogram = LogHistogram(1e-5, 2.0)
        # Counts, sums, squares; uncovered share and images.
        self._sums = torch.zeros(4, 2, dtype=torch.float64)

    def losses(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        self.steps += 1
        # By seed and step alone: the same masks on every rank and after a restart.
        generator = torch.Generator().manual_seed(self.runtime.seed * 1_000_003 + self.steps)
        masks = training_masks(self.config.cells, self.detector.size_px, generator).to(images_BCHW)
        n, count = len(masks), len(images_BCHW)
        visible = masks.repeat_interleave(count, 0)
        out = self.network((2 * images_BCHW - 1).repeat(n, 1, 1, 1) * visible, visible)
        painted = (out[:, :3].unflatten(0, (n, count)) + 1) / 2
        hidden = 1 - masks.unsqueeze(1)
        whole = (painted * hidden).sum(0) + images_BCHW * (1 - hidden.sum(0))
        guessed = self.runtime.mean(F.mse_loss(out[:, 3:], visible, reduction="none"))
        terms = reconstruction_loss(images_BCHW, whole, self.runtime.mean)
        # The published loss adds the guesses of the three masks up; a mean of them times three is that sum.
        return terms | {"loss": terms["loss"] + 3 * self.config.lambda_mask * guessed, "mask": guessed}

    def measure(self, images_BCHW: Tensor) -> None:
        for image in images_BCHW.unsqueeze(1):
            if self.phase == "threshold":
                unseen = torch.zeros(self.detector.size_px, dtype=image.dtype, device=image.device)
                self._histogram.add(self.detector.examine(image, unseen)[0])
            else:
                found, error, uncovered = self.detector.refined(image)
                parts = torch.stack([found.max(), error]).double().cpu()
                share = torch.stack([uncovered.double().cpu(), torch.ones((), dtype=torch.float64)])
                self._sums += torch.stack([torch.ones_like(parts), parts, parts.square(), share])

    def end_epoch(self) -> None:
        super().end_epoch()
        if self.phase == "threshold":
            self._histogram.all_reduce(self.runtime.all_reduce_sum)
        elif self.phase == "scale":
            self._sums = self.runtime.all_reduce_sum(self._sums)

    def finish(self, phase: str) -> None:
        if phase == "threshold":
            self.detector.normal_below.fill_(self._histogram.quantile(NORMAL_QUANTILE))
        elif phase == "scale":
            count, total, squares, share = self._sums
            mean = total / count
            variance = (squares - count * mean.square()).clamp_min(0) / (count - 1).clamp_min(1)
            self.detector.score_mean.copy_(mean)
            # One held-out image, or all alike: the parts keep their own scale.
            self.detector.score_spread.copy_(torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance)))
            self.detector.uncovered_share.fill_(float(share[0] / share[1]))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"steps": self.steps, "histogram": self._histogram.counts, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps = state["steps"]
        self._histogram.counts = state["histogram"]
        self._sums = state["sums"]


class SSM(Detector):
    """The U-Net, the threshold of refinement, and the scale of the score's parts."""

    normal_below: Tensor
    score_mean: Tensor
    score_spread: Tensor
    uncovered_share: Tensor
    masks: Tensor
    cell_weights: Tensor

    def __init__(self, config: SSMConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        # Nothing here is pretrained.
        del pretrained
        super().__init__()
        check_size(spec)
        self.config: SSMConfig = config
        self.spec = spec
        self.size_px = (spec.height_px, spec.width_px)
        if not config.cells or min(config.cells) < 1 or 2 * max(config.cells) > min(self.size_px):
            raise ConfigError(
                "cells are the masks' pixels a side, at most half the image's.",
                f"{list(config.cells)} at {spec.height_px}x{spec.width_px}",
                "Choose smaller ones with --set cells=[2,4].",
            )
        skips: list[nn.Module | None] = [nn.Identity() for _ in range(4)]
        self.network = UNet(width=config.width, out_channels=4, bridges=skips, mask_blocks=config.mask_blocks)
        masks = torch.stack([checkerboard_masks(cell, self.size_px) for cell in config.cells])
        self.register_buffer("masks", masks, persistent=False)
        areas = torch.tensor([float(cell) ** 2 for cell in config.cells])
        self.register_buffer("cell_weights", areas / areas.sum(), persistent=False)
        self.register_buffer("normal_below", torch.zeros(()))
        # Of the map's maximum and of the mean squared error.
        self.register_buffer("score_mean", torch.zeros(2))
        self.register_buffer("score_spread", torch.ones(2))
        # Of held-out normals, by the last refinement.
        self.register_buffer("uncovered_share", torch.zeros(()))

    def paint(self, images_BCHW: Tensor, visible_B1HW: Tensor) -> Tensor:
        """Reconstructions [B, 3, H, W] in [0, 1]."""
        out: Tensor = self.network((2 * images_BCHW - 1) * visible_B1HW, visible_B1HW)
        return (out[:, :3] + 1) / 2

    def judge(self, image_1CHW: Tensor, whole_KCHW: Tensor) -> tuple[Tensor, Tensor]:
        """How unlike an image its reconstructions are: a map [H, W] in [0, 1], smoothed, and the mean squared error."""
        maps = gms_map(image_1CHW.expand_as(whole_KCHW), whole_KCHW)
        combined = (self.cell_weights.view(-1, 1, 1) * maps).sum(0)
        smoothed = gaussian_blur(combined, SMOOTHING * self.spec.height_px / 128)
        return smoothed, (whole_KCHW - image_1CHW).square().mean()

    def examine(self, image_1CHW: Tensor, uncovered_HW: Tensor) -> tuple[Tensor, Tensor]:
        """What `judge` finds in one pass with some places visible in every mask."""
        masks_KN1HW = torch.maximum(self.masks, uncovered_HW)
        flat = masks_KN1HW.flatten(0, 1)
        painted = self.paint(image_1CHW.expand(len(flat), -1, -1, -1), flat)
        painted_KN3HW = painted.reshape(*masks_KN1HW.shape[:2], *painted.shape[1:])
        return self.judge(image_1CHW, compose(image_1CHW, painted_KN3HW, 1 - masks_KN1HW))

    def examine_jointly(self, image_1CHW: Tensor, uncovered_HW: Tensor) -> tuple[Tensor, Tensor]:
        """What `judge` finds where one mask hides all that is not uncovered."""
        visible = uncovered_HW.expand(1, 1, *self.size_px)
        painted = self.paint(image_1CHW, visible)
        # As many as there are cell sizes, so that it is weighed as they are.
        whole = compose(image_1CHW, *(x.expand(len(self.masks), 1, -1, -1, -1) for x in (painted, 1 - visible)))
        return self.judge(image_1CHW, whole)

    def refined(self, image_1CHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All passes over one image: the last map, the last mean squared error, and the uncovered share."""
        uncovered = torch.zeros(self.size_px, dtype=image_1CHW.dtype, device=image_1CHW.device)
        found, error = self.examine(image_1CHW, uncovered)
        for _ in range(self.config.refine_steps if self.config.refine != "none" else 0):
            uncovered = torch.maximum(uncovered, self.normal_blocks(found))
            joint = self.config.refine == "joint" and float(1 - uncovered.mean()) <= JOINT_AT_MOST
            found, error = (self.examine_jointly if joint else self.examine)(image_1CHW, uncovered)
        return found, error, uncovered.mean()

    def normal_blocks(self, found_HW: Tensor) -> Tensor:
        """1 where a block looks normal, as enough of it lies below the threshold, [H, W]."""
        block = (self.spec.height_px // BLOCKS, self.spec.width_px // BLOCKS)
        normal = (found_HW < self.normal_below).to(found_HW)
        share = F.avg_pool2d(normal.expand(1, 1, -1, -1), block)
        blocks = (share > NORMAL_SHARE).to(found_HW)
        return F.interpolate(blocks, self.size_px, mode="nearest")[0, 0]

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            maps, errors, _ = zip(*(self.refined(image) for image in images.unsqueeze(1)), strict=True)
            heatmap = torch.stack(maps)
            if self.config.score != "max+mse":
                return Scores(image_scores(heatmap, self.config.score), heatmap)
            parts = torch.stack([image_scores(heatmap, "max"), torch.stack(errors)], 1)
            return Scores(((parts - self.score_mean) / self.score_spread).sum(1), heatmap)

    def learner(self, runtime: Runtime) -> SSMLearner:
        return SSMLearner(self, runtime)
