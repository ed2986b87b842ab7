"""SSM on what a linear guess leaves: a network that paints in what masks hide begins from a closed form's answer.

It is no paper's method: beside SSM (`models/ssm.py`), whose masks, passes and scores these are, it says what a network
adds to `linear`.
What is hidden is first guessed as the conditional mean under one Gaussian of normal images.
The network learns what that guess leaves, from guesses by the half of the images it does not belong to: a Gaussian
knows the images it was fitted on too well.
Its last layer begins at zero, and so with the guess as it is.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from models.detector import Batch, InputSpec, Phase, finite_or_stop
from models.errors import ConfigError
from models.parts.conditional import MOST_PIXELS, ConditionalFit, ConditionalMean
from models.runtime import Runtime
from models.ssm import SSM, SSMConfig, SSMLearner


class ResidualSSMConfig(SSMConfig):
    """SSM's options; as little as the network has to learn, it takes fewer epochs."""

    epochs: int = Field(default=3, ge=1)


class ResidualSSMLearner(SSMLearner):
    """Phases: `statistics`, and over held-out normals `ridge`; then those of SSM."""

    def __init__(self, detector: ResidualSSM, runtime: Runtime) -> None:
        super().__init__(detector, runtime, (Phase("statistics", 1), Phase("ridge", 1, "held_out")))
        self._base = ConditionalFit(detector.base, runtime, mirrored=detector.config.mirrored)

    def guess(self, images_BCHW: Tensor, positions_B: Tensor, mask_1HW: Tensor) -> Tensor:
        return self._base.guess(images_BCHW, positions_B, mask_1HW)

    def measure(self, batch: Batch) -> None:
        if self.phase == "statistics":
            grid_BCHW = self.detector.on_grid(batch.images)
            finite_or_stop(self.phase, {"images": self.runtime.mean(grid_BCHW.flatten(1).sum(1))})
            self._base.count(grid_BCHW, batch.positions)
        elif self.phase == "ridge":
            # A checkerboard's complement errs as much as itself.
            self._base.try_out(self.detector.on_grid(batch.images), self.detector.masks[:, 0])
        else:
            super().measure(batch)

    def end_epoch(self) -> None:
        super().end_epoch()
        if self.phase == "statistics":
            self._base.end_count()
        elif self.phase == "ridge":
            self._base.end_try_out()

    def finish(self, phase: str) -> None:
        if phase == "ridge":
            self._base.finish()
        super().finish(phase)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | self._base.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._base.load_state_dict(state)


class ResidualSSM(SSM):
    """SSM with the Gaussian that it begins from."""

    def __init__(self, config: ResidualSSMConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__(config, spec, pretrained=pretrained)
        pixels = math.prod(self.size_px)
        if pixels > MOST_PIXELS:
            raise ConfigError(
                f"A linear guess takes grids of up to {MOST_PIXELS} pixels: its matrix has their square of elements.",
                f"{self.size_px[0]}x{self.size_px[1]}",
                "Choose --set grid=32, or the detector ssm.",
            )
        self.base = ConditionalMean(spec.channels, pixels)
        for parameter in self.network.head.parameters():
            nn.init.zeros_(parameter)

    @property
    def one_graph(self) -> bool:
        # A mask's guess is a factorisation, which no engine has.
        return False

    def guess(self, images_BCHW: Tensor, mask_1HW: Tensor) -> Tensor:
        """The images with the Gaussian's guess where the mask hides them."""
        found_BCHW: Tensor = self.base(images_BCHW, mask_1HW)
        return found_BCHW.to(images_BCHW)

    def begin(self, guesses_BCHW: Tensor) -> Tensor:
        return guesses_BCHW

    def learner(self, runtime: Runtime) -> ResidualSSMLearner:
        return ResidualSSMLearner(self, runtime)
