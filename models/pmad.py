"""PMAD-style, re-derived: partition memory bank and histogram error estimation (Xing and Li, IEEE TCSVT 33, 2023,
arXiv 2209.12441).

An auto-encoder all of whose latent vector passes through memories: the vector is cut into parts, every part has a
memory of its own, and what the decoder gets is a mixture of the memory's items, learned from normal images.
An anomaly is not among them and comes back wrong.
From its error map the histogram of each image may take off the error of its background.

Departures from the paper: neither its code nor its text is public, so all but the abstract's ideas is re-derived and
nothing here is a reproduction.
Known are: partitions with a memory each, memories and skip connections by turns, a query that keeps context, and the
histogram of the difference image.
Ours are:

* There is no skip connection nor any other path around a memory, and fewer items than a query has dimensions: only
  then does an image that is like none come back worse.
* The latent vector is partitioned, not the image: a query is of a part of the vector and so of the whole image.
  Memories of tiles, whose answers are decoded into their tiles alone, found less.
* Encoder and decoder are linear maps of the pixels of a small grid, fitted by the squared error: as much as three
  levels of convolutions with the same memories found, or more, in a fraction of the time.
* Cosine similarity with a temperature addresses the items.
  Weights are not shrunk to zero: it found less.
* Queries are drawn to the answers that they get (the compactness of MNAD), so that how far both are apart tells normal
  images from others.
* Which error and which share of its map is the score is chosen by synthetic defects in held-out normals, and so is
  whether the histogram's mode is subtracted.

Shape suffixes: B batch, C channels, H height, W width of the input; h, w those of the grid; P pixels of all channels of
the grid; T parts of the latent vector, D dimensions of one, N items of a memory; M error maps.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.detector import Batch, Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating
from models.errors import ConfigError
from models.parts import histogram_error
from models.parts.error_score import WAYS, ErrorScore, ErrorScoreFit, Way
from models.parts.histogram import LogHistogram
from models.parts.maps import enlarged, gaussian_blur, resampled
from models.parts.rates import cosine
from models.parts.reconstruction import ReconstructionLearner
from models.parts.similarity import gradient_distance
from models.runtime import Runtime

TEMPERATURE = 0.1
# What the distance of queries and answers weighs in the loss, beside the squared error as a share of the images' own.
COMPACTNESS = 0.01
# Gradients are compared at this many sizes, each half of the one before, and four pixels are left of the last.
SCALES = 3
LEAST_SIDE = 4 << (SCALES - 1)
# Sigma of the heatmap's blur, as a share of the grid's side.
BLUR = 1 / 32
# Where the histograms over held-out normals begin and end; errors are below 2.
ERROR_RANGE = (1e-6, 2.0)
# The ways to score an error map, and then those to score what its histogram leaves of it.
ALL_WAYS = WAYS | {f"{name}_hee": (of + 2, share) for name, (of, share) in WAYS.items()}
HEEWay = Literal["gradient_hee", "gradient_top_hee", "difference_hee", "difference_top_hee"]


class PMADConfig(TrainedConfig):
    """PMAD's options."""

    COUNTS_WHERE: ClassVar = {"partitions": ("memory",), "items": ("memory",)}

    epochs: int = Field(default=80, ge=1)
    batch_size: int = Field(default=16, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    # Side of the grid in pixels; where the input is not square, of a square of as many pixels.
    grid: int = Field(default=32, ge=LEAST_SIDE, le=128)
    # Dimensions of the latent vector, and parts of it.
    latent: int = Field(default=256, ge=2)
    partitions: int = Field(default=8, ge=1)
    # Of each part's memory.
    items: int = Field(default=24, ge=1)
    # Without memories it is a plain auto-encoder.
    memory: bool = True
    score: Way | HEEWay = "auto"

    @model_validator(mode="after")
    def _memories_can_refuse(self) -> Self:
        if self.latent % self.partitions:
            raise ConfigError(
                "The latent vector is cut into equal parts.",
                f"partitions={self.partitions} of latent={self.latent}",
                "Choose --set partitions=8 --set latent=256.",
            )
        if self.memory and self.items >= self.latent // self.partitions:
            raise ConfigError(
                "A memory that has as many items as its queries have dimensions has an answer to all of them.",
                f"items={self.items}, and {self.latent // self.partitions} dimensions (latent / partitions)",
                "Choose fewer items, or --set latent=... larger.",
            )
        return self


class PartitionMemory(nn.Module):
    """Answers each part of a latent vector with a mixture of its own items; nothing else of the vector passes."""

    def __init__(self, partitions: int, items: int, dims: int) -> None:
        super().__init__()
        self.items = nn.Parameter(torch.randn(partitions, items, dims))

    def weights(self, queries_BTD: Tensor) -> Tensor:
        """How much of each item is in the answers, [B, T, N], sum 1."""
        items_TND = self.items.to(queries_BTD)
        similarity_TBN = F.normalize(queries_BTD, dim=-1).transpose(0, 1) @ F.normalize(items_TND, dim=-1).transpose(
            1, 2
        )
        return (similarity_TBN.transpose(0, 1) / TEMPERATURE).softmax(-1)

    def forward(self, queries_BTD: Tensor) -> Tensor:
        """The answers [B, T, D]."""
        return (self.weights(queries_BTD).transpose(0, 1) @ self.items.to(queries_BTD)).transpose(0, 1)


class Rebuilt(NamedTuple):
    """What comes back of images, and how far each part's answer was from its query.

    `images` [B, ...] as they were given, `distance` [B, T] in [0, 2]: 1 - cosine, 0 where there are no memories.
    """

    images: Tensor
    distance: Tensor


class AutoEncoder(nn.Module):
    """Linear encoder and decoder, and the memories between them; all works in the precision of the images."""

    centre: Tensor
    spread: Tensor

    def __init__(self, pixels: int, config: PMADConfig) -> None:
        super().__init__()
        dims = config.latent // config.partitions
        # Mean of normal pixels, and how far they are from it: without them all queries would be alike at first.
        self.register_buffer("centre", torch.full((pixels,), 0.5))
        self.register_buffer("spread", torch.ones(()))
        self.encoder = nn.Linear(pixels, config.latent, bias=False)
        self.memory = PartitionMemory(config.partitions, config.items, dims) if config.memory else None
        self.decoder = nn.Linear(config.latent, pixels, bias=False)
        self.parts = (config.partitions, dims)

    def queries(self, images_BChw: Tensor) -> Tensor:
        """The parts of the images' latent vectors, [B, T, D]."""
        latent_BL = _apply(self.encoder, (images_BChw.flatten(1) - self.centre.to(images_BChw)) / self.spread)
        return latent_BL.reshape(-1, *self.parts)

    def forward(self, images_BChw: Tensor) -> Rebuilt:
        queries_BTD = self.queries(images_BChw)
        answers_BTD = queries_BTD if self.memory is None else self.memory(queries_BTD)
        rebuilt_BP = self.centre.to(images_BChw) + self.spread * _apply(self.decoder, answers_BTD.flatten(1))
        distance_BT = 1 - F.cosine_similarity(queries_BTD, answers_BTD, dim=-1)
        return Rebuilt(rebuilt_BP.reshape(images_BChw.shape), distance_BT)


def _apply(layer: nn.Linear, x_BP: Tensor) -> Tensor:
    """The layer in the precision of what it is applied to."""
    return F.linear(x_BP, layer.weight.to(x_BP))


class PMADLearner(ReconstructionLearner["PMAD"]):
    """Phases: `centre` and `rebuild`; over held-out normals `range` and `modes` of the histograms, then `choose`."""

    def __init__(self, detector: PMAD, runtime: Runtime) -> None:
        self.config = config = detector.config
        held_out = (Phase(name, 1, "held_out") for name in ("range", "modes", "choose"))
        phases = (Phase("centre", 1), Phase("rebuild", config.epochs), *held_out)
        super().__init__(detector, detector.network, runtime, phases, config.lr, cosine, training=1)
        # Of the images' grids: sum, sum of squares, and count.
        self.moments_3P = torch.zeros(3, detector.network.centre.numel(), dtype=torch.float64, device=runtime.device)
        self.histograms = [LogHistogram(*ERROR_RANGE) for _ in range(2)]
        self.scores = ErrorScoreFit(detector.error_score, detector.errors, runtime)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        grid_BChw = self.detector.on_grid(batch.images).to(self.detector.network.encoder.weight)
        rebuilt, distance_BT = self.network(grid_BChw)
        mse = self.runtime.mean((rebuilt - grid_BChw).square())
        distance = self.runtime.mean(distance_BT)
        loss = mse / self.detector.network.spread.square() + COMPACTNESS * distance
        return {"loss": loss, "mse": mse, "distance": distance}

    def measure(self, batch: Batch) -> None:
        if self.phase == "centre":
            pixels_BP = self.detector.on_grid(batch.images).flatten(1)
            self.moments_3P += torch.stack([pixels_BP**power for power in (1, 2, 0)]).sum(1)
        elif self.phase == "choose":
            self.scores.step(batch)
        else:
            self._count(self.detector.raw_errors(batch.images))

    def _count(self, errors_2Bhw: Tensor) -> None:
        for histogram, found, top in zip(self.histograms, errors_2Bhw, self.detector.error_top, strict=True):
            histogram.add(found if self.phase == "range" else histogram_error.mode(found, top, ERROR_RANGE[1]))

    def end_epoch(self) -> None:
        super().end_epoch()
        if self.phase == "centre":
            self.moments_3P = self.runtime.all_reduce_sum(self.moments_3P)
        elif self.phase in ("range", "modes"):
            for histogram in self.histograms:
                histogram.all_reduce(self.runtime.all_reduce_sum)

    def finish(self, phase: str) -> None:
        if phase == "centre":
            mean_P, square_P, _ = self.moments_3P / self.moments_3P[2]
            self.detector.network.centre.copy_(mean_P)
            # Two standard deviations: by one, or by four, the memories learn a little less.
            spread = 2 * (square_P - mean_P.square()).mean().clamp_min(0).sqrt()
            # Images that are all alike have none.
            self.detector.network.spread.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))
        elif phase == "choose":
            self.scores.finish(self.config.score)
        elif phase != "rebuild":
            constants, share = (self.detector.error_top, 0.999) if phase == "range" else (self.detector.mode_cap, 0.99)
            for of, histogram in enumerate(self.histograms):
                constants[of] = histogram.quantile(share)
                histogram.counts = torch.zeros_like(histogram.counts)

    def state_dict(self) -> dict[str, Any]:
        counts = [histogram.counts for histogram in self.histograms]
        return super().state_dict() | {"moments": self.moments_3P, "histograms": counts} | self.scores.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.moments_3P = state["moments"].to(self.runtime.device)
        for histogram, counts in zip(self.histograms, state["histograms"], strict=True):
            histogram.counts = counts
        self.scores.load_state_dict(state)


class PMAD(Detector):
    """The auto-encoder with its memories, the constants of the histograms, and the score that was chosen."""

    error_top: Tensor
    mode_cap: Tensor

    def __init__(self, config: PMADConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        # Nothing here is pretrained.
        del pretrained
        super().__init__()
        self.config: PMADConfig = config
        self.spec = spec
        rows, columns = (max(LEAST_SIDE, round(side)) for side in spec.sides(config.grid))
        self.grid = (rows, columns)
        self.network = AutoEncoder(spec.channels * math.prod(self.grid), config)
        # Of errors by gradients and by values.
        self.register_buffer("error_top", torch.full((2,), ERROR_RANGE[1], dtype=torch.float64))
        self.register_buffer("mode_cap", torch.full((2,), ERROR_RANGE[1], dtype=torch.float64))
        self.error_score = ErrorScore(ALL_WAYS)

    @property
    def one_graph(self) -> bool:
        return True

    def on_grid(self, images_BCHW: Tensor) -> Tensor:
        """The images resampled by area to the grid, [B, C, h, w] in float64."""
        return resampled(images_BCHW.double(), self.grid, "area")

    def raw_errors(self, images_BCHW: Tensor) -> Tensor:
        """How far gradients and values of the images lie from those that come back, [2, B, h, w] in float64.

        A score is a small difference divided by its small spread among normals: float32 would show.
        """
        x_BChw = self.on_grid(images_BCHW)
        y_BChw = self.network(x_BChw).images.clamp(0.0, 1.0)
        return torch.stack([gradient_distance(x_BChw, y_BChw, SCALES), (x_BChw - y_BChw).abs().mean(1)])

    def errors(self, images_BCHW: Tensor) -> Tensor:
        """The two raw errors, and what their histograms leave of them, [M, B, h, w]."""
        raw_2Bhw = self.raw_errors(images_BCHW)
        left = [
            histogram_error.subtract(found, histogram_error.mode(found, top, cap))
            for found, top, cap in zip(raw_2Bhw, self.error_top, self.mode_cap, strict=True)
        ]
        return torch.cat([raw_2Bhw, torch.stack(left)])

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            # What histograms leave is for ways that ask for it.
            maps_MBhw = self.errors(images) if self.error_score.of > 1 else self.raw_errors(images)
            image, heat_Bhw = self.error_score(maps_MBhw)
            blurred = gaussian_blur(heat_Bhw, BLUR * math.sqrt(math.prod(self.grid)))
            heatmap = enlarged(blurred.float(), self.spec.size_px)
        return Scores(image.float(), heatmap)

    def learner(self, runtime: Runtime) -> PMADLearner:
        return PMADLearner(self, runtime)
