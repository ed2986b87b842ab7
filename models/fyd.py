"""FYD-style, re-derived: Focus Your Distribution (Zheng et al., ICME 2022, arXiv 2110.04538).

Normal images are aligned coarse to fine: a spatial transformer turns and shifts the whole image, others turn the
backbone's maps, and the backbone is tuned until the features of different normal images agree at every position.
Then every position has a Gaussian of normal features in the aligned frame, and an image is as abnormal as its features
are far from it (Mahalanobis distance). Without alignment and contrast this is models/padim.py.

No code of the paper is public; its abstract and a note of its losses are the source, and the parts that RegAD (Huang et
al., ECCV 2022) shares with it. So nothing here is a reproduction, and these are ours:

* The image's transformer learns from movements that are known: two copies of an image, moved at random, have to be seen
  in one frame. The paper's loss, the distance in colour between different images, chooses the frame that they share.
  Alone it undoes nothing where images differ by more than how they lie.
* It looks twice, the second time at what the first look made of the image (`parts/stn.py`).
* It is trained first, alone, and then frozen. Where images lie alike, what it adds is its own error: statistics are
  taken of the images aligned and as they lie, and if synthetic defects are found better as they lie, they stay so.
* Where the aligned frame shows what lies outside the image, by reflection, distances count for nothing.
* Stages have their transformers trained by the contrast; both are off unless asked for. Transforms are bounded: a free
  one lowers the alignment's loss by shrinking the object.
* Each stage's Gaussians live in that stage's own aligned frame, and only the score maps are carried back. What a
  carried-back map does not cover takes the nearest border's value.
* One bank of Gaussians a stage, on features averaged over 3x3 positions, with distances scaled by position and levelled
  by held-out normals, as in models/padim.py.
* Half turns are not resolved: movements of up to 20 degrees are taught.

Shape suffixes: B batch, C channels, H height, W width, V views.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from models.backbones import Backbone, Stages
from models.detector import Batch, Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating, finite_or_stop
from models.errors import ConfigError
from models.parts.agreement import AgreementHeads, agreement_loss
from models.parts.alignment import Alignment
from models.parts.maps import enlarged, gaussian_blur
from models.parts.patch_features import average_patches
from models.parts.rates import cosine, set_rate
from models.parts.stage_gaussians import LEVEL, SCALE, STATISTICS, GaussianFit, StageGaussians
from models.parts.stn import SpatialTransformer, shown, unwarp, warp
from models.parts.trial import Trial, first_best
from models.runtime import Runtime

# What the image's transformer reads.
POOLED_PX = 32
# A smaller map has too few positions to say how it is turned.
SMALLEST_STN_PX = 8
# The image's transformer looks so many times, each time at what the last one made of the image.
PASSES = 2
# How far one look may turn an image, and shift it, as a share of its sides.
IMAGE_ANGLE_DEG, IMAGE_SHIFT = 45.0, 0.25
# How far a stage's map may be turned, and scaled.
STAGE_ANGLE_DEG, STAGE_SCALE = 15.0, 0.1
# Features are averaged over so many positions a side.
PATCH = 3
# A distance counts where the image covers so much of what lies around its position.
INSIDE = 0.98
# Sigma in pixels at 128 px, scaled with the image's height.
BLUR = 4.0


class FYDConfig(TrainedConfig):
    """FYD's options; the defaults suit EfficientNet-Lite0 at 128 px on CPU."""

    COUNTS_WHERE: ClassVar = {
        "align_epochs": ("align_image",),
        "epochs": ("align_stages", "contrast"),
        "lr": ("align_stages", "contrast"),
    }

    # Of the contrast: SGD with momentum 0.9 and cosine decay.
    epochs: int = Field(default=5, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    batch_size: int = Field(default=16, ge=2)
    backbone: str = "efficientnet_lite0"
    # See models/backbones/weights.py.
    weights: str = "auto"
    # Stages, as halvings of the input.
    layers: tuple[int, ...] = (3, 4, 5)
    # Coarse: one transform an image, learnt in its own passes.
    align_image: bool = True
    align_epochs: int = Field(default=60, ge=1)
    # Coarse: one transform a stage, trained by the contrast.
    align_stages: bool = False
    # Fine: the backbone's features of different images agree at every position.
    contrast: bool = False
    # Of projector and predictor, 256 in RegAD; transformers have four times as many hidden units.
    width: int = Field(default=64, ge=1)
    # Random dimensions of each bank; 0 takes all.
    dims: int = Field(default=128, ge=0)

    @model_validator(mode="after")
    def _aligns(self) -> Self:
        if not (self.align_image or self.align_stages or self.contrast):
            raise ConfigError(
                "fyd aligns images or their features.",
                "align_image=false, align_stages=false, contrast=false",
                "Choose --detector padim, which is fyd without all three.",
            )
        return self


def as_they_lie(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The images, and the transforms [B, 3, 3] that leave them so."""
    identity = torch.eye(3, dtype=images_BCHW.dtype, device=images_BCHW.device)
    return images_BCHW, identity.repeat(len(images_BCHW), 1, 1)


class AlignedStages(nn.Module):
    """The backbone in stages, and behind each a spatial transformer where its map is large enough."""

    def __init__(self, source: Backbone, config: FYDConfig, size_px: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = Stages(source, size_px)
        self.backbone.stages.requires_grad_(config.contrast)
        shapes = self.backbone.shapes
        self.transformers = nn.ModuleList(
            SpatialTransformer(c, (h, w), hidden=4 * config.width, max_angle_deg=STAGE_ANGLE_DEG, max_scale=STAGE_SCALE)
            if config.align_stages and min(h, w) >= SMALLEST_STN_PX
            else nn.Identity()
            for c, h, w in shapes
        )
        if config.align_stages and not any(isinstance(stn, SpatialTransformer) for stn in self.transformers):
            raise ConfigError(
                f"align_stages needs a stage of at least {SMALLEST_STN_PX} positions a side.",
                [shape[1:] for shape in shapes],
                "Choose a larger --size, shallower --set layers=[2,3,4], or --set align_stages=false.",
            )

    def forward(self, images_BCHW: Tensor, transform_B33: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Each stage's map in its aligned frame [B, C, H, W], and that frame's transform of the input [B, 3, 3]."""
        x = self.backbone.prepare(images_BCHW)
        maps, frames = [], []
        for stage, transformer in zip(self.backbone.stages, self.transformers, strict=True):
            x = stage(x)
            if isinstance(transformer, SpatialTransformer):
                turned = transformer(x)
                x = warp(x, turned)
                # The next frame is seen through this one.
                transform_B33 = transform_B33 @ turned
            maps.append(x)
            frames.append(transform_B33)
        return maps, frames


class Agreement(nn.Module):
    """The aligned stages with their heads: what the contrast trains."""

    def __init__(self, trunk: AlignedStages, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = AgreementHeads(trunk.backbone.shapes[-1].channels, width)

    def forward(self, images_BCHW: Tensor, transform_B33: Tensor) -> tuple[Tensor, Tensor]:
        """Projections and predictions [B, C, H, W] of the deepest map."""
        maps, _ = self.trunk(images_BCHW, transform_B33)
        found: tuple[Tensor, Tensor] = self.heads(maps[-1])
        return found


class View(NamedTuple):
    """A way to see images, and the Gaussians of what is seen."""

    see: Callable[[Tensor], tuple[Tensor, Tensor]]
    gaussians: nn.ModuleList
    fit: GaussianFit


class FYDLearner:
    """Phases: `align`, `contrast` as configured; `statistics`, `scale`; over held-out normals `level` and `choose`."""

    def __init__(self, detector: FYD, runtime: Runtime) -> None:
        config = detector.config
        self.detector = detector.to(runtime.device)
        self.runtime = runtime
        self.config = config
        self.contrasted = config.contrast or config.align_stages
        self.phases: tuple[Phase, ...] = (
            *((Phase("align", config.align_epochs),) if config.align_image else ()),
            *((Phase("contrast", config.epochs),) if self.contrasted else ()),
            *(STATISTICS, SCALE, LEVEL),
            *((Phase("choose", 1, "held_out"),) if config.align_image else ()),
        )
        self.phase = ""
        # Finished epochs of the current phase.
        self.epoch = 0
        if detector.image_transformer is not None:
            self.alignment = Alignment(detector.image_transformer, config.align_epochs, runtime)
        if self.contrasted:
            with torch.random.fork_rng():
                # Equal on every rank.
                torch.manual_seed(runtime.seed)
                self.agreement = Agreement(detector.trunk, config.width).to(runtime.device)
            self.network = runtime.wrap(self.agreement)
            trained = [parameter for parameter in self.agreement.parameters() if parameter.requires_grad]
            self.optimizer = torch.optim.SGD(trained, config.lr, momentum=0.9, weight_decay=1e-4)
        # Where images are aligned, also as they lie, to choose between both; the detector's own come first.
        self.views = [View(detector.align, detector.gaussians, GaussianFit(detector.gaussians, runtime))]
        if config.align_image:
            others = copy.deepcopy(detector.gaussians)
            self.views.append(View(as_they_lie, others, GaussianFit(others, runtime)))
        self.trial = Trial(self._scores, len(self.views), runtime)

    def start(self, phase: str) -> None:
        self.phase, self.epoch = phase, 0
        self.detector.eval()
        if phase == "align":
            self.alignment.network.train()
        elif phase == "contrast":
            self.network.train()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.images.to(self.runtime.device, non_blocking=True)
        if self.phase == "align":
            return self.alignment.step(images, batch.total)
        if self.phase == "contrast":
            return self._contrast(images, batch.total)
        with torch.no_grad():
            if self.phase == "choose":
                self.trial.step(batch._replace(images=images))
                return {}
            for view in self.views:
                maps, _ = self.detector.maps(*view.see(images))
                view.fit.step(self.phase, maps)
        return {}

    def _scores(self, images: Tensor) -> Tensor:
        """Every view's scores, [B, V]."""
        heatmaps = [self.detector.heatmap(view.gaussians, *view.see(images)) for view in self.views]
        return torch.stack([heatmap.flatten(1).amax(1) for heatmap in heatmaps], 1)

    def _contrast(self, images: Tensor, total: int) -> dict[str, Tensor]:
        with torch.no_grad():
            aligned, transform = self.detector.align(images)
        projected, predicted = (self.runtime.gather(x, total) for x in self.network(aligned, transform))
        loss = agreement_loss(predicted, projected)
        losses = {"loss": loss.detach(), "spread": loss.new_zeros(())}
        # One image has nothing to agree with.
        if total > 1:
            losses["spread"] = F.normalize(projected.detach(), dim=1).std(0).mean()
        finite_or_stop(self.phase, losses)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return losses

    def end_epoch(self) -> None:
        self.epoch += 1
        for view in self.views:
            view.fit.end_epoch(self.phase)
        if self.phase == "align":
            self.alignment.end_epoch()
        elif self.phase == "contrast":
            set_rate(self.optimizer, self.config.lr * cosine(self.epoch, self.config.epochs))

    def finish(self, phase: str) -> None:
        for view in self.views:
            view.fit.finish(phase)
        if phase == "choose":
            best = self.views[first_best(self.trial.normal(), self.trial.abnormal())]
            self.detector.aligns.fill_(best.see != as_they_lie)
            self.detector.gaussians.load_state_dict(best.gaussians.state_dict())

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"detector": self.detector.state_dict(), "epoch": self.epoch}
        state["views"] = [{"gaussians": view.gaussians.state_dict(), **view.fit.state_dict()} for view in self.views]
        state["trial"] = self.trial.state_dict()
        if self.config.align_image:
            state["alignment"] = self.alignment.state_dict()
        if self.contrasted:
            state["heads"] = self.agreement.heads.state_dict()
            state["optimizer"] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.epoch = state["epoch"]
        for view, stored in zip(self.views, state["views"], strict=True):
            view.gaussians.load_state_dict(stored["gaussians"])
            view.fit.load_state_dict(stored)
        self.trial.load_state_dict(state["trial"])
        if self.config.align_image:
            self.alignment.load_state_dict(state["alignment"])
        if self.contrasted:
            self.agreement.heads.load_state_dict(state["heads"])
            self.optimizer.load_state_dict(state["optimizer"])


class FYD(Detector):
    """The image's transformer, the aligned stages, and each stage's Gaussians."""

    aligns: Tensor

    def __init__(self, config: FYDConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        self.config: FYDConfig = config
        self.spec = spec
        size = spec.size_px
        source = Backbone(config.backbone, config.layers, config.weights if pretrained else None)
        self.image_transformer: SpatialTransformer | None = None
        if config.align_image:
            pooled = (min(POOLED_PX, size[0]), min(POOLED_PX, size[1]))
            self.image_transformer = SpatialTransformer(
                3, pooled, hidden=4 * config.width, max_angle_deg=IMAGE_ANGLE_DEG, max_shift=IMAGE_SHIFT, passes=PASSES
            )
        # Images in which more is found as they lie stay so.
        self.register_buffer("aligns", torch.tensor(True))
        self.trunk = AlignedStages(source, config, size)
        self.gaussians = nn.ModuleList(StageGaussians(shape, config.dims) for shape in self.trunk.backbone.shapes)

    def source_record(self) -> dict[str, Any]:
        return self.trunk.backbone.record

    def align(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The aligned images, and the transform of each [B, 3, 3]."""
        if self.image_transformer is None or not self.aligns:
            return as_they_lie(images_BCHW)
        # In float64: how sums are rounded hangs on the size of the batch, and a frame that lies elsewhere by as little
        # moves a score by more, and a position out of the image.
        precise = {name: value.double() for name, value in self.image_transformer.state_dict().items()}
        transform = functional_call(self.image_transformer, precise, images_BCHW.double()).to(images_BCHW)
        return warp(images_BCHW, transform), transform

    def maps(self, aligned_BCHW: Tensor, transform_B33: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What each stage's Gaussians see [B, C, H, W], and the transform of the frame it lies in [B, 3, 3]."""
        maps, frames = self.trunk(aligned_BCHW, transform_B33)
        return [average_patches(x, PATCH) for x in maps], frames

    def heatmap(self, gaussians: nn.ModuleList, aligned_BCHW: Tensor, transform_B33: Tensor) -> Tensor:
        """The mean of all stages' distances, carried back to where the images lie, [B, H, W]."""
        heats = []
        for stage, map_BCHW, frame in zip(gaussians, *self.maps(aligned_BCHW, transform_B33), strict=True):
            distance = stage(map_BCHW) * self._inside(frame, map_BCHW)
            heats.append(unwarp(enlarged(distance, self.spec.size_px), frame))
        return gaussian_blur(torch.stack(heats).mean(0), BLUR * self.spec.height_px / 128)

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            heatmap = self.heatmap(self.gaussians, *self.align(images))
        return Scores(heatmap.flatten(1).amax(1), heatmap)

    def _inside(self, frame_B33: Tensor, map_BCHW: Tensor) -> Tensor:
        """Which positions' distances count [B, h, w]: one that sees what continues the image says nothing."""
        inside = shown(frame_B33, self.spec.size_px)
        height, width = map_BCHW.shape[-2:]
        share = average_patches(F.adaptive_avg_pool2d(inside, (height, width)), PATCH)
        return (share > INSIDE).to(share).squeeze(1)

    def learner(self, runtime: Runtime) -> FYDLearner:
        return FYDLearner(self, runtime)
