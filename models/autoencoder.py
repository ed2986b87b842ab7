"""The plain auto-encoder: a network with a bottleneck gives images back, and what comes back unlike them is suspect.

It is no paper's method. It is the floor that SSM and PMAD stand on: their U-Net without masks, memories and skips,
fitted by the same loss and read by the same gradient similarity, so that a figure of theirs can be held against it.

Each image is scored by itself: the size of a batch decides how its sums are rounded.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.detector import Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating
from models.parts.maps import gaussian_blur
from models.parts.reconstruction import SMOOTHING, Decay, ReconstructionLearner, image_scores, rebuild
from models.parts.similarity import gms_map, reconstruction_loss
from models.parts.unet import UNet, check_size
from models.runtime import Runtime

DECAY = Decay((0.8,), 0.1)
WEIGHT_DECAY = 1e-5


class AutoencoderConfig(TrainedConfig):
    """The auto-encoder's options; the defaults suit 64 to 128 px on CPU."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=8, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    # Channels at full resolution.
    width: int = Field(default=16, ge=1)
    # What of the heatmap is the image's score.
    score: Literal["max", "mean"] = "mean"


class AutoencoderLearner(ReconstructionLearner["Autoencoder"]):
    """One phase, `rebuild`."""

    def __init__(self, detector: Autoencoder, runtime: Runtime) -> None:
        config, phases = detector.config, (Phase("rebuild", detector.config.epochs),)
        super().__init__(
            detector, detector.network, runtime, phases, lr=config.lr, decay=DECAY, weight_decay=WEIGHT_DECAY
        )

    def losses(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        return reconstruction_loss(images_BCHW, rebuild(self.network, images_BCHW), self.runtime.mean)


class Autoencoder(Detector):
    """The U-Net without any bridge from encoder to decoder but the bottleneck."""

    def __init__(self, config: AutoencoderConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        # Nothing here is pretrained.
        del pretrained
        super().__init__()
        check_size(spec)
        self.config: AutoencoderConfig = config
        self.spec = spec
        self.network = UNet(width=config.width, out_channels=3, bridges=[None] * 4)

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            heatmap = torch.cat([self._heatmap(image) for image in images.unsqueeze(1)])
        return Scores(image_scores(heatmap, self.config.score), heatmap)

    def _heatmap(self, images_BCHW: Tensor) -> Tensor:
        found = gms_map(images_BCHW, rebuild(self.network, images_BCHW))
        return gaussian_blur(found, SMOOTHING * self.spec.height_px / 128)

    def learner(self, runtime: Runtime) -> AutoencoderLearner:
        return AutoencoderLearner(self, runtime)
