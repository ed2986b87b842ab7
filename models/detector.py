"""The contract every detector keeps: what goes in, what comes out, and how it is fitted.

Shape suffixes: B batch, C channels, H height in pixels, W width in pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from models.errors import ConfigError, InputError, NonFiniteLoss

# A part of this contract, and imported from here.
from models.runtime import Runtime


class InputSpec(BaseModel):
    """What a detector takes: float32 images in [0, 1] of shape [B, channels, height_px, width_px]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int
    height_px: int
    width_px: int
    needs_anomalous: bool = False

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        return self.height_px, self.width_px

    def sides(self, side: int) -> tuple[float, float]:
        """Height and width, not rounded, of this shape at as many pixels as a square of `side` has."""
        across = math.sqrt(self.height_px / self.width_px)
        return side * across, side / across

    def check(self, images_BCHW: Tensor) -> None:
        """Raise InputError unless `images_BCHW` is float32, finite, in [0, 1] and of this shape."""
        want = (self.channels, self.height_px, self.width_px)
        if images_BCHW.ndim != 4 or tuple(images_BCHW.shape[1:]) != want:
            raise InputError(
                f"Images must have shape [B, {want[0]}, {want[1]}, {want[2]}].",
                list(images_BCHW.shape),
                "Resize them with the model's own pixel policy.",
            )
        if images_BCHW.dtype != torch.float32:
            raise InputError("Images must be float32.", images_BCHW.dtype, "Convert with .float() / full scale.")
        if images_BCHW.numel():
            low, high = images_BCHW.detach().aminmax()
            # NaN compares false with everything, so this also refuses it.
            if not (low >= 0.0 and high <= 1.0):
                raise InputError(
                    "Images must be finite and within [0, 1].", f"[{low:g}, {high:g}]", "Apply the pixel policy first."
                )


class DetectorConfig(BaseModel):
    """What every detector's configuration holds; each adds its own fields.

    Unknown keys are refused, and numbers that are not finite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Options that do nothing unless one of these is on.
    COUNTS_WHERE: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    # Over all workers together.
    batch_size: int = Field(default=32, ge=1)

    def counts(self, option: str) -> bool:
        """Whether the option does anything beside the others' values."""
        switches = self.COUNTS_WHERE.get(option)
        return switches is None or any(getattr(self, name) not in (False, "none") for name in switches)

    @model_validator(mode="after")
    def _every_option_counts(self) -> Self:
        fields = type(self).model_fields
        for option, switches in self.COUNTS_WHERE.items():
            value = getattr(self, option)
            if value != fields[option].default and not self.counts(option):
                raise ConfigError(
                    f"{option} counts where {' or '.join(switches)} is on.", f"{option}={value}", "Leave it out."
                )
        return self


class TrainedConfig(DetectorConfig):
    """What the configuration of a detector holds that learns in passes over the images."""

    epochs: int = Field(ge=1)
    lr: float = Field(gt=0)


class Scores(NamedTuple):
    """Raw scores, finite, larger = more abnormal: `image` float32 [B], `heatmap` float32 [B, H, W]."""

    image: Tensor
    heatmap: Tensor


class Batch(NamedTuple):
    """One step's images with their dense positions in the phase's set, so that a learner may cache by position.

    With several workers it is this rank's share of the global batch; of a small last one that may be no image at all.
    """

    # float32 [B, C, H, W] in [0, 1].
    images: Tensor
    # int64 [B], place in the set: the same image has the same one in every epoch over that set.
    positions: Tensor
    # float32 [B, C, H, W]: only for a detector whose spec needs them.
    anomalous: Tensor | None = None
    # Images of the global batch; None: there are no others than these.
    over_all: int | None = None

    @property
    def total(self) -> int:
        """Images of the global batch."""
        return len(self.images) if self.over_all is None else self.over_all


class Phase(NamedTuple):
    """One part of a fit: so many passes under one name, over the training images or over the held-out normals.

    A phase over held-out normals takes constants from them (z-scores, quantiles, ranges) and never trains: what is
    estimated on images the network was fitted on is biased low.
    """

    name: str
    epochs: int
    images: Literal["train", "held_out"] = "train"


class Learner(Protocol):
    """Owns losses, optimizers and phases of one fit; knows nothing of files or Ray.

    The worker calls, for each phase in order: `start`, then `step` for every batch of every epoch with
    `end_epoch` after each, then `finish`. `state_dict` taken between epochs and loaded into a fresh learner of
    an equal detector continues the fit exactly. What a rank has summed up is added to the others' in `end_epoch`, so
    that between epochs the state is the same on every rank, whatever their number.
    """

    phases: tuple[Phase, ...]

    def start(self, phase: str) -> None: ...
    def step(self, batch: Batch) -> dict[str, Tensor]: ...
    def end_epoch(self) -> None: ...
    def finish(self, phase: str) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Detector(nn.Module, ABC):
    """A network that scores images. Everything it needs to score is in its config and its state_dict."""

    spec: InputSpec
    config: DetectorConfig

    @abstractmethod
    def score(self, images: Tensor) -> Scores:
        """Score float32 images [B, C, H, W] in [0, 1].

        Pure: weights, training mode, gradients and every RNG are as before. Row-independent: a row's score does
        not depend on its batch mates. Owns its grad mode: call it plainly, never inside `inference_mode`.

        Raises:
            InputError: wrong shape, dtype or range.
        """

    @abstractmethod
    def learner(self, runtime: Runtime) -> Learner:
        """A learner that fits this detector in place."""

    @property
    def one_graph(self) -> bool:
        """Whether `score` is one graph, the same for every image and of a batch of any size.

        Then an inference engine may run it: see models/graph.py. What decides by an image's own values how to go on
        is none. In float64 engines add, multiply (matrices, too) and sort, but neither convolve, pool nor resize.
        """
        return False

    def source_record(self) -> dict[str, Any] | None:
        """What the model's record says of a pretrained network inside; None where there is none."""
        return None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` in eval mode and give every submodule its own mode back at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def finite_or_stop(phase: str, losses: dict[str, Tensor]) -> None:
    """Raise NonFiniteLoss unless every loss is finite: called before `optimizer.step()`."""
    if not all(bool(torch.isfinite(value).all()) for value in losses.values()):
        raise NonFiniteLoss(phase, ", ".join(f"{name}={float(value):g}" for name, value in losses.items()))
