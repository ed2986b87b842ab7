"""FYD-style, re-derived: Focus Your Distribution (Zheng et al., ICME 2022, arXiv 2110.04538).

Normal images are aligned coarse to fine: a spatial transformer turns the whole image, others turn the backbone's maps,
and the backbone is tuned until the features of different normal images agree at every position. Then every position has
a Gaussian of normal features, and an image is as abnormal as its features are far from it (Mahalanobis distance).

No code of the paper is public; its abstract and a note of its losses are the source, and the parts that RegAD (Huang et
al., ECCV 2022) shares with it. Without alignment and contrast this is PaDiM (Defard et al., 2021). So nothing here is a
reproduction, and these are ours:

* Transforms are bounded (`stn.py`), rotations are real ones, and each stage's Gaussians live in that stage's own aligned
  frame; only the score maps are carried back (`unwarp=score`). `unwarp=features` is RegAD's order: it carries the
  features back before any Gaussian is fitted. What a carried-back map does not cover takes the nearest border's value.
* One bank of Gaussians a stage (`bank=stage`). A distance counts by how far it lies beyond what training images have at
  that position, and stages are levelled by held-out normals, so that they add up (`normalise=position`). PaDiM puts all
  stages side by side on the finest grid and leaves its distances as they are (`bank=joint`, `normalise=none`).
* Features are averaged over 3x3 positions first (`patch`), as PatchCore does.
* Stages at strides 8, 16 and 32 by default, where PaDiM takes 4, 8 and 16.
* Which steps are on by default is what the ablation decided (benchmarks/results/quality.md), not the paper.
* `selection=watch` keeps the state before collapse, seen by patches cut and pasted within training images.

Shape suffixes: B batch, C channels, H height, W width, P positions, D dimensions.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.backbones import Backbone
from models.detector import (
    Batch,
    Detector,
    InputSpec,
    Phase,
    Runtime,
    Scores,
    TrainedConfig,
    evaluating,
    finite_or_stop,
)
from models.errors import ConfigError
from models.parts.batch_norm import BatchNorm2d
from models.parts.gaussian import GaussianBank, GaussianSums, PositionScale, sums_of
from models.parts.maps import gaussian_blur
from models.parts.stn import Family, SpatialTransformer, half_turn, unwarp, warp

POOLED_PX = 56  # what the image's transformer reads
SMALLEST_STN_PX = 8  # a smaller map has too few positions to say how it is turned
ORIENT_PASSES = 4  # the first draws the mean image, the others choose sides by it
WATCHED = 64  # training images kept to watch for collapse, half of them to fit, half to judge
COLLAPSE = 0.01  # how far the synthetic AUROC may fall below its best


class FYDConfig(TrainedConfig):
    """FYD's options; the defaults suit EfficientNet-Lite0 at 128 px on CPU. The paper's scale is 50 epochs at 224 px."""

    epochs: int = Field(default=5, ge=1)  # of contrast; read only where there is any
    batch_size: int = Field(default=16, ge=2)
    lr: float = Field(default=1e-4, gt=0)  # of contrast, SGD with momentum 0.9 and cosine decay
    backbone: str = "efficientnet_lite0"
    weights: str = "auto"  # see models/backbones.py
    norm: str = "native"
    layers: tuple[int, ...] = (3, 4, 5)  # stages, as halvings of the input; PaDiM's are 2, 3, 4
    align_image: bool = False  # coarse: one transform an image
    align_stages: bool = False  # coarse: one transform a stage, trained by the contrast
    contrast: bool = False  # fine: features of different images agree at every position
    align_epochs: int = Field(default=30, ge=1)
    align_lr: float = Field(default=1e-3, gt=0)
    image_family: Family = "rotation_translation"
    stage_family: Family = "rotation_scale"
    image_angle_deg: float = Field(default=30.0, gt=0, le=180)
    flip: bool = False  # also resolve half turns, for objects that lie at any angle
    stn_hidden: int = Field(default=256, ge=1)  # 1024 in RegAD
    width: int = Field(default=64, ge=1)  # of projector and predictor; 256 in RegAD
    patch: int = Field(default=3, ge=1)  # features are averaged over patch x patch positions; 1 is PaDiM
    dims: int = Field(default=128, ge=0)  # random dimensions of each bank; 0 takes all
    cov_reg: float = Field(default=0.01, gt=0)  # ridge, as a share of the mean variance
    bank: Literal["stage", "joint"] = "stage"
    unwarp: Literal["score", "features"] = "score"
    normalise: Literal["position", "stage", "none"] = "position"
    blur: float = Field(default=4.0, ge=0)  # sigma in pixels at 128 px, scaled with the image's height
    selection: Literal["last", "watch"] = "last"


class Trunk(nn.Module):
    """The backbone in stages with a spatial transformer before the first and behind each."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: FYDConfig, spec: InputSpec, weights: str | None) -> None:
        super().__init__()
        source = Backbone(config.backbone, config.layers, weights, config.norm)
        self.source_record = source.record()
        self.register_buffer("mean", source.mean)
        self.register_buffer("std", source.std)
        self.stages = nn.ModuleList(source.stages())
        self.stages.requires_grad_(config.contrast)
        self.shapes = self._shapes(spec)  # (C, H, W) of each stage
        self.image_stn: SpatialTransformer | None = None
        if config.align_image:
            size = (min(POOLED_PX, spec.height_px), min(POOLED_PX, spec.width_px))
            self.image_stn = SpatialTransformer(
                3, size, config.image_family, hidden=config.stn_hidden, max_angle_deg=config.image_angle_deg
            )
        self.stage_stns = nn.ModuleList(
            SpatialTransformer(c, (h, w), config.stage_family, hidden=config.stn_hidden)
            if config.align_stages and min(h, w) >= SMALLEST_STN_PX
            else nn.Identity()
            for c, h, w in self.shapes
        )
        if config.align_stages and not any(isinstance(stn, SpatialTransformer) for stn in self.stage_stns):
            raise ConfigError(
                f"align_stages needs a stage of at least {SMALLEST_STN_PX} positions a side.",
                [shape[1:] for shape in self.shapes],
                "Choose a larger --size, shallower --set layers=[2,3,4], or --set align_stages=false.",
            )

    def _shapes(self, spec: InputSpec) -> list[tuple[int, int, int]]:
        shapes = []
        x = torch.zeros(1, 3, spec.height_px, spec.width_px)
        with torch.no_grad(), evaluating(self):
            for stage in self.stages:
                try:
                    x = stage(x)
                except RuntimeError as error:  # a map without pixels
                    raise ConfigError(
                        "Every stage needs a position.",
                        f"{spec.height_px}x{spec.width_px}",
                        "Choose a larger --size, or shallower --set layers=[2,3,4].",
                    ) from error
                shapes.append((int(x.shape[1]), int(x.shape[2]), int(x.shape[3])))
        return shapes

    def train(self, mode: bool = True) -> Trunk:
        """Train the transformers' batch norm alone: the backbone's statistics stay those of ImageNet."""
        super().train(mode)
        self.stages.train(False)
        return self

    def align(self, images_BCHW: Tensor) -> Tensor:
        """The image transform of each image, [B, 3, 3]."""
        if self.image_stn is None:
            return torch.eye(3, dtype=images_BCHW.dtype, device=images_BCHW.device).repeat(len(images_BCHW), 1, 1)
        transform: Tensor = self.image_stn(images_BCHW)
        return transform

    def forward(self, images_BCHW: Tensor, transform_B33: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Each stage's map in its aligned frame [B, C, H, W], and that frame's transform of the input [B, 3, 3]."""
        x = images_BCHW if self.image_stn is None else warp(images_BCHW, transform_B33)
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        maps, frames = [], []
        for stage, stn in zip(self.stages, self.stage_stns, strict=True):
            x = stage(x)
            if isinstance(stn, SpatialTransformer):
                turned = stn(x)
                x = warp(x, turned)
                transform_B33 = transform_B33 @ turned  # the next frame is seen through this one
            maps.append(x)
            frames.append(transform_B33)
        return maps, frames


class FYD(Detector):
    """The trunk, one bank of Gaussians a stage (or one for all), and the scale of each bank's distances."""

    turned_mean: Tensor

    def __init__(self, config: FYDConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        self.config: FYDConfig = config
        self.spec = spec
        self.trunk = Trunk(config, spec, config.weights if pretrained else None)
        stages = self.trunk.shapes
        if config.bank == "joint":
            stages = [(sum(c for c, _, _ in stages), *stages[0][1:])]
        self.grids = [(h, w) for _, h, w in stages]
        self.banks = nn.ModuleList()
        self.scales = nn.ModuleList()
        for number, (channels, height, width) in enumerate(stages):
            kept = torch.randperm(channels)[: config.dims or channels].sort().values
            self.register_buffer(f"dims_{number}", kept)
            self.banks.append(GaussianBank(height * width, len(kept)))
            self.scales.append(PositionScale(height * width))
        # The mean aligned image, by which half turns are told apart; only with `flip`.
        self.register_buffer(
            "turned_mean", torch.zeros(3, *((spec.height_px, spec.width_px) if config.flip else (0, 0)))
        )

    @property
    def gaussians(self) -> list[GaussianBank]:
        """The banks, shallow to deep."""
        return [bank for bank in self.banks if isinstance(bank, GaussianBank)]

    def source_record(self) -> dict[str, Any]:
        return self.trunk.source_record

    def transform(self, images_BCHW: Tensor) -> Tensor:
        """The image transform with its half turn resolved, [B, 3, 3]."""
        transform = self.trunk.align(images_BCHW)
        if self.config.flip:
            shown = warp(images_BCHW, transform)
            upright = (shown - self.turned_mean).square().flatten(1).sum(1)
            turned = (shown.flip(2, 3) - self.turned_mean).square().flatten(1).sum(1)
            transform = half_turn(transform, turned < upright)
        return transform

    def features(self, images_BCHW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What each bank sees, [B, P, D], and the transform of the frame it lies in, [B, 3, 3]."""
        maps, frames = self.trunk(images_BCHW, self.transform(images_BCHW))
        moved = self.trunk.image_stn is not None or self.config.align_stages
        if self.config.unwarp == "features" and moved:
            maps = [warp(m, torch.linalg.inv(f), padding="border") for m, f in zip(maps, frames, strict=True)]
            frames = [torch.eye(3, dtype=f.dtype, device=f.device).expand_as(f) for f in frames]
        if self.config.patch > 1:
            pad = self.config.patch // 2
            maps = [
                F.avg_pool2d(m, self.config.patch, 1, pad, count_include_pad=False)[..., : m.shape[2], : m.shape[3]]
                for m in maps
            ]
        if self.config.bank == "joint":
            finest = maps[0].shape[-2:]
            maps = [torch.cat([F.interpolate(m, finest, mode="nearest") for m in maps], 1)]
            frames = frames[:1]
        chosen = [m[:, getattr(self, f"dims_{n}")].flatten(2).transpose(1, 2) for n, m in enumerate(maps)]
        return chosen, frames

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            features, frames = self.features(images)
            size = (self.spec.height_px, self.spec.width_px)
            maps = []
            for x, frame, bank, scale, grid in zip(
                features, frames, self.gaussians, self.scales, self.grids, strict=True
            ):
                distance = scale(bank.distance(x)).unflatten(1, grid)
                raised = F.interpolate(distance.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)
                moved = self.config.unwarp == "score" and (self.config.align_image or self.config.align_stages)
                maps.append(unwarp(raised, frame) if moved else raised)
            heatmap = torch.stack(maps).mean(0)
            heatmap = gaussian_blur(heatmap, self.config.blur * self.spec.height_px / 128)
        return Scores(heatmap.flatten(1).amax(1), heatmap)

    def learner(self, runtime: Runtime) -> FYDLearner:
        return FYDLearner(self, runtime)


class Agreement(nn.Module):
    """The trunk with projector and predictor: what the contrast trains."""

    def __init__(self, trunk: Trunk, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        channels = trunk.shapes[-1][0]

        def narrow(before: int) -> list[nn.Module]:
            return [nn.Conv2d(before, width, 1), BatchNorm2d(width), nn.ReLU()]

        self.projector = nn.Sequential(*narrow(channels), *narrow(width), nn.Conv2d(width, width, 1))
        self.predictor = nn.Sequential(*narrow(width), nn.Conv2d(width, width, 1))

    def forward(self, images_BCHW: Tensor, transform_B33: Tensor) -> tuple[Tensor, Tensor]:
        """Projections and predictions [B, C, H, W] of the deepest map."""
        maps, _ = self.trunk(images_BCHW, transform_B33)
        projected = self.projector(maps[-1])
        return projected, self.predictor(projected)


def alignment_loss(aligned_BCHW: Tensor) -> Tensor:
    """Mean over pixels and pairs of images of their distance in colour (L_ICA, as mean instead of sum)."""
    difference = aligned_BCHW.unsqueeze(0) - aligned_BCHW.unsqueeze(1)
    distance = (difference.square().sum(2) + 1e-8).sqrt().flatten(2).mean(2)
    count = len(aligned_BCHW)
    return (distance.sum() - distance.diagonal().sum()) / max(1, count * (count - 1))


def agreement_loss(predicted_BCHW: Tensor, projected_BCHW: Tensor) -> Tensor:
    """Minus the mean cosine between one image's prediction and another's projection, over positions and pairs (L_FA).

    Projections are targets: no gradient reaches them. All ordered pairs cost one sum over the batch.
    """
    p = F.normalize(predicted_BCHW, dim=1)
    z = F.normalize(projected_BCHW.detach(), dim=1)
    others = z.sum(0, keepdim=True) - z
    return -(p * others).sum(1).mean() / max(1, len(p) - 1)


def cut_and_paste(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Copies of the images, each with a patch of its own put elsewhere, a sixth to a third of a side long."""
    pasted = images_BCHW.clone()
    height, width = images_BCHW.shape[-2:]

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, max(low + 1, high), (), generator=generator))

    for image, source in zip(pasted, images_BCHW, strict=True):
        h, w = (draw(max(1, side // 6), max(2, side // 3)) for side in (height, width))
        top, left, to_top, to_left = (draw(0, room) for room in (height - h, width - w, height - h, width - w))
        image[:, to_top : to_top + h, to_left : to_left + w] = source[:, top : top + h, left : left + w].flip(1)
    return pasted


class FYDLearner:
    """Phases: `align`, `orient`, `contrast` as configured; then `statistics`, `scale`, and `level` over held-out normals."""

    def __init__(self, detector: FYD, runtime: Runtime) -> None:
        config = detector.config
        self.detector = detector.to(runtime.device)
        self.runtime = runtime
        self.config = config
        self.contrasted = config.contrast or config.align_stages
        self.phases = (
            *((Phase("align", config.align_epochs),) if config.align_image else ()),
            *((Phase("orient", ORIENT_PASSES),) if config.flip else ()),
            *((Phase("contrast", config.epochs),) if self.contrasted else ()),
            Phase("statistics", 1),
            *((Phase("scale", 1),) if config.normalise == "position" else ()),
            *((Phase("level", 1, "held_out"),) if config.normalise != "none" else ()),
        )
        self.phase = ""
        self.epoch = 0  # finished epochs of the current phase
        self.aligner: nn.Module | None = None
        if config.align_image:
            assert detector.trunk.image_stn is not None
            self.aligner = runtime.wrap(detector.trunk.image_stn)
            self.align_optimizer = torch.optim.Adam(detector.trunk.image_stn.parameters(), lr=config.align_lr)
        if self.contrasted:
            with torch.random.fork_rng():
                torch.manual_seed(runtime.seed)  # equal on every rank
                self.agreement = Agreement(detector.trunk, config.width).to(runtime.device)
            for parameter in self._image_parameters():
                parameter.requires_grad_(False)  # aligned first, then frozen
            self.network = runtime.wrap(self.agreement)
            for parameter in self._image_parameters():
                parameter.requires_grad_(True)
            trained = [p for n, p in self.agreement.named_parameters() if "image_stn" not in n and p.requires_grad]
            self.optimizer = torch.optim.SGD(trained, config.lr, momentum=0.9, weight_decay=1e-4)
        self._mean = torch.zeros(1, *detector.turned_mean.shape, dtype=torch.float64)  # with its count behind
        self._mean_count = torch.zeros((), dtype=torch.float64)
        self._sums = [GaussianSums(len(b.mean), b.mean.shape[1]) for b in self.detector.gaussians]
        self._scale_sums = [torch.zeros(3, len(b.mean), dtype=torch.float64) for b in self.detector.gaussians]
        self._kept: dict[int, Tensor] = {}  # training images that are watched, by position
        self.best: dict[str, Tensor] = {}
        self.best_auroc = 0.0
        self.synthetic_auroc: Tensor | None = None
        self.stopped = False

    def _image_parameters(self) -> list[nn.Parameter]:
        stn = self.detector.trunk.image_stn
        return [] if stn is None else list(stn.parameters())

    def start(self, phase: str) -> None:
        self.phase, self.epoch = phase, 0
        self.detector.eval()
        if phase == "align" and self.aligner is not None:
            self.aligner.train()
        elif phase == "contrast":
            self.network.train()
            if self.detector.trunk.image_stn is not None:
                self.detector.trunk.image_stn.eval()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.images.to(self.runtime.device, non_blocking=True)
        if self.phase == "align":
            return self._align(images, batch.total)
        if self.phase == "contrast":
            self._keep(batch)
            return {} if self.stopped else self._contrast(images, batch.total)
        with torch.no_grad():
            if self.phase == "orient":
                shown = warp(
                    images, self.detector.transform(images) if self.epoch else self.detector.trunk.align(images)
                )
                self._mean += shown.double().sum(0, keepdim=True).cpu()
                self._mean_count += len(images)
                return {}
            features, _ = self.detector.features(images)
            if self.phase == "statistics":
                for sums, x in zip(self._sums, features, strict=True):
                    sums.add(x)
                return {}
            for number, x in enumerate(features):
                distance = self.detector.gaussians[number].distance(x)
                if self.phase == "level":
                    distance = self.detector.scales[number](distance)
                self._scale_sums[number] += sums_of(distance)
        return {}

    def _align(self, images: Tensor, total: int) -> dict[str, Tensor]:
        assert self.aligner is not None
        pooled = F.adaptive_avg_pool2d(images, (min(POOLED_PX, images.shape[2]), min(POOLED_PX, images.shape[3])))
        # Every pair counts, also of images on two ranks.
        loss = alignment_loss(self.runtime.gather(warp(pooled, self.aligner(pooled)), total))
        losses = {"loss": loss.detach()}
        finite_or_stop(self.phase, losses)
        self.align_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.align_optimizer.step()
        return losses

    def _contrast(self, images: Tensor, total: int) -> dict[str, Tensor]:
        with torch.no_grad():
            transform = self.detector.transform(images)
        projected, predicted = (self.runtime.gather(x, total) for x in self.network(images, transform))
        loss = agreement_loss(predicted, projected)
        losses = {"loss": loss.detach(), "spread": loss.new_zeros(())}
        if total > 1:  # one image has nothing to agree with
            losses["spread"] = F.normalize(projected.detach(), dim=1).std(0).mean()
        if self.synthetic_auroc is not None:
            losses["synthetic_auroc"] = self.synthetic_auroc
        finite_or_stop(self.phase, losses)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return losses

    def _keep(self, batch: Batch) -> None:
        """Keep the first images of the phase, those of all ranks on each."""
        if self.config.selection == "watch" and self.epoch == 0 and len(self._kept) < WATCHED:
            positions, images = (self.runtime.gather(x, batch.total) for x in (batch.positions, batch.images))
            for position, image in zip(positions.tolist(), images, strict=True):
                if len(self._kept) < WATCHED:
                    self._kept[position] = image.clone()

    def end_epoch(self) -> None:
        self.epoch += 1
        if self.phase == "statistics":
            for sums in self._sums:
                sums.all_reduce(self.runtime.all_reduce_sum)
        elif self.phase in ("scale", "level"):
            self._scale_sums = [self.runtime.all_reduce_sum(sums) for sums in self._scale_sums]
        elif self.phase == "orient":
            total = self.runtime.all_reduce_sum(self._mean)
            count = self.runtime.all_reduce_sum(self._mean_count)
            self.detector.turned_mean.copy_((total / count).squeeze(0))
            self._mean, self._mean_count = torch.zeros_like(total), torch.zeros_like(count)
        elif self.phase == "contrast" and not self.stopped:
            for group in self.optimizer.param_groups:  # cosine to zero
                turn = torch.tensor(torch.pi * self.epoch / self.config.epochs)
                group["lr"] = self.config.lr * 0.5 * (1 + float(torch.cos(turn)))
            if self.config.selection == "watch":
                self._watch()

    def _watch(self) -> None:
        """Keep the best state by synthetic anomalies; stop once they are found clearly worse than at the best."""
        auroc = torch.tensor(self._synthetic_auroc(), dtype=torch.float64)
        found = float(self.runtime.all_reduce_sum(auroc) / self.runtime.world)
        self.synthetic_auroc = torch.tensor(found)
        if found > self.best_auroc:
            self.best_auroc = found
            self.best = {name: tensor.clone() for name, tensor in self.detector.trunk.state_dict().items()}
        self.stopped = found < self.best_auroc - COLLAPSE

    def _synthetic_auroc(self) -> float:
        """How well pasted patches stand out of training images: Gaussians of one half, judged on the other."""
        kept = torch.stack([image for _, image in sorted(self._kept.items())]).to(self.runtime.device)
        half = len(kept) // 2
        if half < 2:
            return 0.5
        pasted = cut_and_paste(kept[half:], torch.Generator().manual_seed(self.runtime.seed))
        trial = copy.deepcopy(self.detector)
        with torch.no_grad(), evaluating(trial):
            for number, bank in enumerate(trial.gaussians):
                sums = GaussianSums(len(bank.mean), bank.mean.shape[1])
                sums.add(trial.features(kept[:half])[0][number])
                bank.fit(sums, self.config.cov_reg)
        normal, anomalous = (trial.score(x).image for x in (kept[half:], pasted))
        pairs = anomalous.unsqueeze(1) - normal
        return float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())

    def finish(self, phase: str) -> None:
        if phase == "contrast" and self.config.selection == "watch":
            self.detector.trunk.load_state_dict(self.best)
        elif phase == "statistics":
            for bank, sums in zip(self.detector.gaussians, self._sums, strict=True):
                bank.fit(sums, self.config.cov_reg)
        elif phase in ("scale", "level"):
            for number, scale in enumerate(self.detector.scales):
                assert isinstance(scale, PositionScale)
                total = self._scale_sums[number]
                if phase == "scale":
                    scale.fit_positions(total)
                else:
                    scale.fit_level(total)
                self._scale_sums[number] = torch.zeros_like(total)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "detector": self.detector.state_dict(),
            "epoch": self.epoch,
            "mean": self._mean,
            "mean_count": self._mean_count,
            "sums": [sums.state_dict() for sums in self._sums],
            "scale_sums": self._scale_sums,
        }
        if self.config.align_image:
            state["align_optimizer"] = self.align_optimizer.state_dict()
        if self.contrasted:
            state |= {
                "agreement": {n: t for n, t in self.agreement.state_dict().items() if not n.startswith("trunk.")},
                "optimizer": self.optimizer.state_dict(),
                "kept": self._kept,
                "best": self.best,
                "best_auroc": self.best_auroc,
                "synthetic_auroc": self.synthetic_auroc,
                "stopped": self.stopped,
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.epoch = state["epoch"]
        self._mean, self._mean_count = state["mean"], state["mean_count"]
        for sums, kept in zip(self._sums, state["sums"], strict=True):
            sums.load_state_dict(kept)
        self._scale_sums = list(state["scale_sums"])
        if self.config.align_image:
            self.align_optimizer.load_state_dict(state["align_optimizer"])
        if self.contrasted:
            self.agreement.load_state_dict(state["agreement"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self._kept, self.best = dict(state["kept"]), dict(state["best"])
            self.best_auroc, self.stopped = state["best_auroc"], state["stopped"]
            self.synthetic_auroc = state["synthetic_auroc"]
