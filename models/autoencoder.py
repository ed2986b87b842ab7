"""The plain auto-encoder: a network with a bottleneck gives images back, and what comes back unlike them is suspect.

It is no paper's method. It is the floor that SSM stands on: its U-Net without masks and skips, fitted by the same loss
and read in the same ways, so that a figure of SSM's can be held against it.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from models.detector import Batch, Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating
from models.parts.error_score import ErrorScore, ErrorScoreFit, Way
from models.parts.maps import gaussian_blur
from models.parts.rates import steps
from models.parts.reconstruction import SMOOTHING, ReconstructionLearner, rebuild
from models.parts.similarity import gradient_distance, reconstruction_loss
from models.parts.unet import UNet, check_size
from models.runtime import Runtime

SCHEDULE = steps(0.8, factor=0.1)
WEIGHT_DECAY = 1e-5
# Gradients are compared at this many sizes, each half of the one before.
SCALES = 3


class AutoencoderConfig(TrainedConfig):
    """The auto-encoder's options; the defaults suit 32 to 128 px on CPU."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=16, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    # Channels at full resolution.
    width: int = Field(default=8, ge=1)
    score: Way = "auto"


class AutoencoderLearner(ReconstructionLearner["Autoencoder"]):
    """Phases: `rebuild`; over held-out normals `choose`."""

    def __init__(self, detector: Autoencoder, runtime: Runtime) -> None:
        config = detector.config
        phases = (Phase("rebuild", config.epochs), Phase("choose", 1, "held_out"))
        super().__init__(detector, detector.network, runtime, phases, config.lr, SCHEDULE, weight_decay=WEIGHT_DECAY)
        self._scores = ErrorScoreFit(detector.error_score, detector.errors, runtime)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return reconstruction_loss(batch.images, rebuild(self.network, batch.images), self.runtime.mean)

    def measure(self, batch: Batch) -> None:
        self._scores.step(batch)

    def finish(self, phase: str) -> None:
        if phase == "choose":
            self._scores.finish(self.detector.config.score)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | self._scores.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._scores.load_state_dict(state)


class Autoencoder(Detector):
    """The U-Net without any bridge from encoder to decoder but the bottleneck."""

    def __init__(self, config: AutoencoderConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        # Nothing here is pretrained.
        del pretrained
        super().__init__()
        check_size(spec)
        self.config: AutoencoderConfig = config
        self.spec = spec
        channels = spec.channels
        self.network = UNet(width=config.width, in_channels=channels, out_channels=channels, bridges=[None] * 4)
        self.error_score = ErrorScore()

    @property
    def one_graph(self) -> bool:
        return True

    def errors(self, images_BCHW: Tensor) -> Tensor:
        """How far gradients and values lie from those that came back, [2, B, H, W] in float64."""
        # A score is a small difference divided by its small spread among normals: float32 would show.
        x, y = images_BCHW.double(), rebuild(self.network, images_BCHW).double()
        return torch.stack([gradient_distance(x, y, SCALES), (x - y).abs().mean(1)])

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            image, heatmap = self.error_score(self.errors(images))
            heatmap = gaussian_blur(heatmap, SMOOTHING * self.spec.height_px / 128)
        return Scores(image.float(), heatmap.float())

    def learner(self, runtime: Runtime) -> AutoencoderLearner:
        return AutoencoderLearner(self, runtime)
