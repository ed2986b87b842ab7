"""A memory of normal patches (PatchCore, Roth et al., CVPR 2022, arXiv 2106.08265; AnomalyDINO, WACV 2025, 2405.14529).

A frozen ImageNet network describes every patch of an image, and a memory keeps such descriptions of normal images.
A patch is as abnormal as it is unlike the most alike of them, wherever that one lay: images need not lie alike.
Nothing is trained: a fit is one pass over the images.

Departures from the papers:

* Patches are compared by their cosine, as AnomalyDINO does, where PatchCore takes the Euclidean distance.
  Each stage of the network counts alike: a patch's cosine is the mean of its stages' cosines.
* PatchCore's coreset is chosen from all patches of the fit, which 70 images at 224 px make 20 GiB.
  Here it is chosen from a random sample of them (`candidates`), so that memory does not grow with the images.
  It has a number of items rather than a share of the patches, so that an image's time does not grow either.
* The score is the map's maximum after a slight blur.
  PatchCore's is weighted by how crowded the memory is around the nearest item; AnomalyDINO's is the mean of the
  highest hundredth.
* Where a patch lies may count (`place`), for images that lie alike; neither paper has that.

Shape suffixes: B batch, C channels, H height, W width, P positions, D dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.detector import Batch, Detector, InputSpec, Phase, Scores, evaluating, finite_or_stop
from models.parts.maps import enlarged, gaussian_blur
from models.parts.memory_bank import MemoryBank, PatchSample
from models.parts.patch_features import PatchFeaturesConfig, average_patches
from models.runtime import Runtime


class KNNConfig(PatchFeaturesConfig):
    """The memory's options beside those of its features."""

    # What the memory keeps: time and size of a model go by it.
    items: int = Field(default=4096, ge=1)
    # What it is chosen from.
    candidates: int = Field(default=32768, ge=1)
    # What is added to 1 - cosine for the squared distance between two places, in sides of the image; 0: none.
    place: float = Field(default=0.0, ge=0)


class KNNLearner:
    """Phases: `memory`."""

    phases: tuple[Phase, ...] = (Phase("memory", 1),)

    def __init__(self, detector: KNN, runtime: Runtime) -> None:
        self.detector = detector.to(runtime.device)
        self.runtime = runtime
        self.sample = PatchSample(detector.config.candidates, detector.memory.items, runtime)

    def start(self, phase: str) -> None:
        del phase
        self.detector.eval()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            patches = self.detector.patches(batch.images.to(self.runtime.device, non_blocking=True))
            finite_or_stop("memory", {"features": self.runtime.mean(patches)})
            self.sample.add(patches, batch.positions)
        return {}

    def end_epoch(self) -> None:
        self.sample.all_reduce()

    def finish(self, phase: str) -> None:
        del phase
        self.detector.memory.fit(self.sample.patches, self.runtime.seed)

    def state_dict(self) -> dict[str, Any]:
        return {"detector": self.detector.state_dict(), "sample": self.sample.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.sample.load_state_dict(state["sample"])


class KNN(Detector):
    """A frozen backbone, and a memory of what it sees in normal images."""

    # [P, 2]
    places: Tensor

    def __init__(self, config: KNNConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        self.config: KNNConfig = config
        self.spec = spec
        self.backbone = config.network(spec, pretrained=pretrained)
        shapes = self.backbone.shapes
        self.grid = (shapes[0].height, shapes[0].width)
        down, across = (torch.arange(side) / side for side in self.grid)
        # Half of the squared distance between two of these is what `place` adds.
        places = math.sqrt(2 * config.place) * torch.cartesian_prod(down, across)
        self.register_buffer("places", places, persistent=False)
        self.memory = MemoryBank(config.items, sum(shape.channels for shape in shapes) + 2)

    @property
    def one_graph(self) -> bool:
        return True

    def source_record(self) -> dict[str, Any]:
        return self.backbone.record

    def patches(self, images_BCHW: Tensor) -> Tensor:
        """What the memory sees of every position: the stages' unit vectors side by side, and the place, [B, P, D]."""
        maps = [average_patches(x, self.config.patch) for x in self.backbone(images_BCHW)]
        finest = [x if x.shape[-2:] == self.grid else _resized(x, self.grid) for x in maps]
        seen = torch.cat([F.normalize(x, dim=1) for x in finest], 1) / math.sqrt(len(finest))
        seen = seen.flatten(2).transpose(1, 2)
        return torch.cat([seen, self.places.expand_as(seen[:, :, :2])], 2)

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            far = self.memory(self.patches(images)).unflatten(1, self.grid)
            heatmap = gaussian_blur(enlarged(far, self.spec.size_px), self.config.blur * self.spec.height_px / 128)
        return Scores(heatmap.flatten(1).amax(1), heatmap)

    def learner(self, runtime: Runtime) -> KNNLearner:
        return KNNLearner(self, runtime)


def _resized(map_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.interpolate(map_BCHW, grid, mode="bilinear", align_corners=False)
