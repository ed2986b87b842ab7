"""PaDiM: Gaussians of normal features at every position (Defard et al., ICPR 2021 workshops, arXiv 2011.08785).

A frozen ImageNet network describes every position of an image, and a Gaussian says what normal images have there.
An image is as abnormal as its features are far from it (Mahalanobis distance).
Nothing is trained: a fit is a few passes over the images.

Departures from the paper; the `paper` preset takes back those that are options:

* One bank of Gaussians a stage (`bank=stage`).
  A distance counts by how far it lies beyond what training images have at that position, and stages are levelled by
  held-out normals, so that they add up.
  The paper puts all stages side by side on the finest grid and leaves its distances as they are (`bank=joint`).
* Features are averaged over 3x3 positions first (`patch`), as PatchCore does.
* Stages at strides 8, 16 and 32 by default, where the paper takes 4, 8 and 16.
* The ridge is a share of the mean variance instead of 0.01 itself, so that its effect does not hang on the backbone's
  scale.
* Images are resized to the input's size; the paper crops the middle of a larger one.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.backbones.stages import Shape
from models.detector import Batch, Detector, InputSpec, Phase, Scores, evaluating
from models.parts.maps import enlarged, gaussian_blur
from models.parts.patch_features import PatchFeaturesConfig, average_patches
from models.parts.stage_gaussians import LEVEL, SCALE, STATISTICS, GaussianFit, StageGaussians
from models.runtime import Runtime


class PaDiMConfig(PatchFeaturesConfig):
    """PaDiM's options beside those of its features."""

    # Random dimensions of each bank; 0 takes all.
    dims: int = Field(default=128, ge=0)
    bank: Literal["stage", "joint"] = "stage"


class PaDiMLearner:
    """Phases: `statistics`; with a bank for each stage then `scale`, and `level` over held-out normals."""

    def __init__(self, detector: PaDiM, runtime: Runtime) -> None:
        self.detector = detector.to(runtime.device)
        self.runtime = runtime
        self.phases: tuple[Phase, ...] = (STATISTICS,)
        if detector.config.bank == "stage":
            self.phases = (STATISTICS, SCALE, LEVEL)
        self.phase = ""
        self.gaussians = GaussianFit(detector.gaussians, runtime)

    def start(self, phase: str) -> None:
        self.phase = phase
        self.detector.eval()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            maps = self.detector.maps(batch.images.to(self.runtime.device, non_blocking=True))
            self.gaussians.step(self.phase, maps)
        return {}

    def end_epoch(self) -> None:
        self.gaussians.end_epoch(self.phase)

    def finish(self, phase: str) -> None:
        self.gaussians.finish(phase)

    def state_dict(self) -> dict[str, Any]:
        return {"detector": self.detector.state_dict(), **self.gaussians.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.gaussians.load_state_dict(state)


class PaDiM(Detector):
    """A frozen backbone in stages, and the Gaussians of each stage's map, or of all maps joined."""

    def __init__(self, config: PaDiMConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        self.config: PaDiMConfig = config
        self.spec = spec
        self.backbone = config.network(spec, pretrained=pretrained)
        shapes = self.backbone.shapes
        if config.bank == "joint":
            shapes = [Shape(sum(shape.channels for shape in shapes), *shapes[0][1:])]
        self.gaussians = nn.ModuleList(StageGaussians(shape, config.dims) for shape in shapes)

    @property
    def one_graph(self) -> bool:
        return True

    def source_record(self) -> dict[str, Any]:
        return self.backbone.record

    def maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """The map [B, C, H, W] that each bank of Gaussians sees."""
        maps = [average_patches(x, self.config.patch) for x in self.backbone(images_BCHW)]
        if self.config.bank == "joint":
            finest = maps[0].shape[-2:]
            maps = [torch.cat([F.interpolate(x, finest, mode="nearest") for x in maps], 1)]
        return maps

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        size = self.spec.size_px
        with evaluating(self), torch.no_grad():
            maps = zip(self.gaussians, self.maps(images), strict=True)
            heatmap = torch.stack([enlarged(stage(x), size) for stage, x in maps]).mean(0)
            heatmap = gaussian_blur(heatmap, self.config.blur * self.spec.height_px / 128)
        return Scores(heatmap.flatten(1).amax(1), heatmap)

    def learner(self, runtime: Runtime) -> PaDiMLearner:
        return PaDiMLearner(self, runtime)
