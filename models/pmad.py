"""PMAD-style, re-derived: partition memory bank and histogram error estimation (Xing and Li, IEEE TCSVT 33, 2023,
arXiv 2209.12441).

An auto-encoder whose decoder sees the encoder's details only through memories: a map is cut into tiles, every tile has
a memory of its own, and what passes is a mixture of the memory's items, learned from normal images.
An anomaly is not among them and comes back wrong.
From the error map the histogram of each image takes off the error of its background.

Departures from the paper: neither its code nor its text is public, so all but the abstract's ideas is re-derived and
nothing here is a reproduction.
Known are: spatial partitions with a memory each, memories and skip connections by turns, a query that keeps context,
and the histogram of the difference image.
Ours are:

* The network, losses and gradient similarity are SSM's without its masks, so that the two differ in one thing.
* One memory, at an eighth of the resolution, and no skip (`modes=[none,none,none,pmb]`): measured better on real images
  than memories and skips by turns (`[none,pmb,skip,pmb]`, as the abstract has it), which let anomalies through.
* The query is a channel's map within a tile.
* Cosine similarity with a temperature, weights shrunk at 1/N, and the nearest item alone where all would be shrunk
  away: without a temperature, or at MemAE's constant, such weights are close to uniform or all zero.
* The histogram's mode is subtracted, then the map is blurred.
* `modes=[none,none,none,none]` leaves no memory, `hee=false` the error as it is.

Shape suffixes: B batch, C channels, H height, W width, T tiles, Q queries of a tile, N items, D dimensions of a query.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.detector import Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating
from models.errors import ConfigError
from models.parts import histogram_error
from models.parts.histogram import LogHistogram
from models.parts.maps import gaussian_blur
from models.parts.reconstruction import Decay, ReconstructionLearner, image_scores, rebuild
from models.parts.similarity import gms_map, reconstruction_loss
from models.parts.unet import UNet, check_size
from models.runtime import Runtime

Mode = Literal["none", "skip", "pmb"]
DECAY = Decay((0.8, 0.9), 0.2)
TEMPERATURE = 0.05
# What the entropy of a memory's weights weighs in the loss (MemAE's).
LAMBDA_ENTROPY = 2e-4
# Parameters of one level's memories.
LARGEST_MEMORY = 50_000_000
# Where the histograms over held-out normals end; gradient similarity is below.
LARGEST_ERROR = 2.0
# Sigma in pixels at a height of 128.
BLUR = 2.0


class PMADConfig(TrainedConfig):
    """PMAD's options; the defaults suit 64 to 128 px on CPU."""

    epochs: int = Field(default=12, ge=1)
    batch_size: int = Field(default=8, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    # Channels at full resolution.
    width: int = Field(default=16, ge=1)
    # What the decoder sees at full resolution, 1/2, 1/4 and 1/8: nothing, the encoder's map, or what a memory answers.
    modes: tuple[Mode, Mode, Mode, Mode] = ("none", "none", "none", "pmb")
    # Tiles a side at each level.
    partitions: tuple[int, int, int, int] = (4, 4, 2, 2)
    # Of each memory.
    items: int = Field(default=50, ge=1)
    # Epochs without shrinking, which stops gradients.
    warmup: int = Field(default=3, ge=0)
    hee: bool = True
    score: Literal["max", "mean"] = "mean"

    @model_validator(mode="after")
    def _options_are_of_a_memory(self) -> Self:
        for option in ("partitions", "items", "warmup"):
            value, default = getattr(self, option), type(self).model_fields[option].default
            if "pmb" not in self.modes and value != default:
                raise ConfigError(
                    f"{option} counts where modes name a memory.", f"{option}={value}", f"Leave it at {default}."
                )
        return self


def tile(maps_BCHW: Tensor, side: int) -> Tensor:
    """[B, T, C, h * w] with T = side**2 tiles, row by row."""
    b, c, height, width = maps_BCHW.shape
    h, w = height // side, width // side
    return maps_BCHW.reshape(b, c, side, h, side, w).permute(0, 2, 4, 1, 3, 5).reshape(b, side**2, c, h * w)


def untile(tiles_BTCD: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """The maps [B, C, H, W] that `tile` cut."""
    b, _, c, _ = tiles_BTCD.shape
    h, w = size[0] // side, size[1] // side
    return tiles_BTCD.reshape(b, side, side, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(b, c, *size)


def shrink(weights: Tensor) -> Tensor:
    """Weights [..., N] without those up to 1/N, scaled to a sum of 1; the largest alone where none is above."""
    limit = 1 / weights.shape[-1]
    above = weights - limit
    kept = F.relu(above) * weights / (above.abs() + 1e-12)
    total = kept.sum(-1, keepdim=True)
    nearest = F.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights)
    return torch.where(total > 0, kept / total.clamp_min(1e-12), nearest)


class PartitionMemory(nn.Module):
    """Answers a feature map with a mixture of memory items, tile by tile; nothing else of the map passes.

    Args:
        size: height and width of the map.
        side: tiles a side.
        items: of each tile's memory.
        temperature: the smaller, the fewer items answer.
    """

    def __init__(self, size: tuple[int, int], side: int, items: int, *, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        area = (size[0] // side) * (size[1] // side)
        if side**2 * items * area > LARGEST_MEMORY:
            raise ConfigError(
                f"A level's memories have at most {LARGEST_MEMORY:,} parameters.",
                f"{side**2 * items * area:,} for {side**2} memories of {items} items of {area} dimensions",
                "Choose fewer --set items=..., or memories at coarser levels alone: --set modes=[none,none,none,pmb].",
            )
        self.side, self.temperature = side, temperature
        self.items = nn.Parameter(torch.randn(side**2, items, area))
        # Off while the learner warms up.
        self.shrinks = True
        self._usage: tuple[Tensor, Tensor] | None = None

    def usage(self) -> tuple[Tensor, Tensor]:
        """Entropies and maxima of the weights [B, T, Q] in the last forward pass in training mode; asked for once."""
        assert self._usage is not None
        found, self._usage = self._usage, None
        return found

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        # The queries are the channels.
        tiles_BTQD = tile(maps_BCHW, self.side)
        similarity = F.normalize(tiles_BTQD, dim=-1) @ F.normalize(self.items, dim=-1).transpose(1, 2)
        weights_BTQN = (similarity / self.temperature).softmax(-1)
        if self.training:
            entropy = -(weights_BTQN * weights_BTQN.clamp_min(1e-12).log()).sum(-1)
            self._usage = entropy, weights_BTQN.detach().amax(-1)
        if self.shrinks:
            weights_BTQN = shrink(weights_BTQN)
        return untile(weights_BTQN @ self.items, self.side, (maps_BCHW.shape[2], maps_BCHW.shape[3]))


class PMADLearner(ReconstructionLearner["PMAD"]):
    """Phases: `rebuild`; with HEE also `range` and `modes` over held-out normals."""

    def __init__(self, detector: PMAD, runtime: Runtime) -> None:
        self.config = detector.config
        held_out = (Phase("range", 1, "held_out"), Phase("modes", 1, "held_out")) if self.config.hee else ()
        phases = (Phase("rebuild", self.config.epochs), *held_out)
        super().__init__(detector, detector.network, runtime, phases, lr=self.config.lr, decay=DECAY)
        self._histogram = LogHistogram(1e-6, LARGEST_ERROR)

    def start(self, phase: str) -> None:
        super().start(phase)
        self._set_shrinking()

    def _set_shrinking(self) -> None:
        warming = self.trains and self.epoch < min(self.config.warmup, self.config.epochs - 1)
        for memory in self.detector.memories():
            memory.shrinks = not warming

    def losses(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        terms = reconstruction_loss(images_BCHW, rebuild(self.network, images_BCHW), self.runtime.mean)
        for number, memory in enumerate(self.detector.memories()):
            entropy, largest = (self.runtime.mean(values) for values in memory.usage())
            terms["loss"] = terms["loss"] + LAMBDA_ENTROPY * entropy
            terms |= {f"entropy_{number}": entropy, f"largest_{number}": largest}
        return terms

    def measure(self, images_BCHW: Tensor) -> None:
        errors = self.detector.errors(images_BCHW)
        if self.phase == "modes":
            errors = histogram_error.mode(errors, self.detector.error_top, LARGEST_ERROR)
        self._histogram.add(errors)

    def end_epoch(self) -> None:
        super().end_epoch()
        if not self.trains:
            self._histogram.all_reduce(self.runtime.all_reduce_sum)
        self._set_shrinking()

    def finish(self, phase: str) -> None:
        if phase == "range":
            self.detector.error_top.fill_(self._histogram.quantile(0.999))
        elif phase == "modes":
            self.detector.mode_cap.fill_(self._histogram.quantile(0.99))
        self._histogram.counts = torch.zeros_like(self._histogram.counts)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"histogram": self._histogram.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._histogram.counts = state["histogram"]
        self._set_shrinking()


class PMAD(Detector):
    """The auto-encoder with its memories, and the constants of the histograms."""

    error_top: Tensor
    mode_cap: Tensor

    def __init__(self, config: PMADConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        # Nothing here is pretrained.
        del pretrained
        super().__init__()
        check_size(spec)
        self.config: PMADConfig = config
        self.spec = spec
        self.network = UNet(width=config.width, out_channels=3, bridges=[self._bridge(n) for n in range(4)])
        self.register_buffer("error_top", torch.ones(()))
        self.register_buffer("mode_cap", torch.full((), LARGEST_ERROR))

    def _bridge(self, level: int) -> nn.Module | None:
        config = self.config
        if config.modes[level] != "pmb":
            return nn.Identity() if config.modes[level] == "skip" else None
        side = config.partitions[level]
        height, width = self.spec.height_px >> level, self.spec.width_px >> level
        if side < 1 or height % side or width % side:
            raise ConfigError(
                "Tiles divide a map evenly.",
                f"{side} a side at level {level}, whose map is {height}x{width}",
                "Choose another with --set partitions=[4,4,2,2] (full resolution, 1/2, 1/4, 1/8).",
            )
        return PartitionMemory((height, width), side, config.items)

    def memories(self) -> list[PartitionMemory]:
        """The memories, fine to coarse."""
        return [part for part in self.network.bridges if isinstance(part, PartitionMemory)]

    def errors(self, images_BCHW: Tensor) -> Tensor:
        """How unlike each image its reconstruction is, at each pixel, [B, H, W]."""
        return gms_map(images_BCHW, rebuild(self.network, images_BCHW))

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            # One by one: shrinking drops an item from one step of the last digit to the next, and that digit hangs on
            # the size of the batch.
            errors = torch.cat([self.errors(image) for image in images.unsqueeze(1)])
            if self.config.hee:
                errors = histogram_error.subtract(errors, histogram_error.mode(errors, self.error_top, self.mode_cap))
            heatmap = gaussian_blur(errors, BLUR * self.spec.height_px / 128)
        return Scores(image_scores(heatmap, self.config.score), heatmap)

    def learner(self, runtime: Runtime) -> PMADLearner:
        return PMADLearner(self, runtime)
