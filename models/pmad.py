"""PMAD-style, re-derived: partition memory bank and histogram error estimation (Xing and Li, IEEE TCSVT 33, 2023,
arXiv 2209.12441).

An auto-encoder whose decoder sees the encoder's details only through memories: a map is cut into tiles, every tile has
a memory of its own, and what passes is a mixture of the memory's items, learned from normal images. An anomaly is not
among them and comes back wrong. From the error map the histogram of each image takes off the error of its background.

Departures from the paper: neither its code nor its text is public, so all but the abstract's ideas is re-derived and
nothing here is a reproduction. Known are: spatial partitions with a memory each, memories and skip connections by turns,
a query that keeps context, and the histogram of the difference image. Ours are:

* The network, losses and gradient similarity are SSM's without its masks, so that the two differ in one thing.
* One memory, at an eighth of the resolution, and no skip (`modes=[none,none,none,pmb]`): measured better on real images
  than memories and skips by turns (`[none,pmb,skip,pmb]`, as the abstract has it), which let anomalies through.
* The query is a channel's map within a tile (`query=channel_map`); `pixel` is MemAE's within a tile, `block` a whole tile.
* Cosine similarity with a temperature, weights shrunk at 1/N, and the nearest item alone where all would be shrunk away:
  without a temperature, or at MemAE's constant, such weights are close to uniform or all zero.
* The histogram's mode is subtracted, then the map is blurred; the image score can take off more (`kappa_image`).
* `modes=[none,none,none,none]` is the plain auto-encoder, `hee=false` leaves the error as it is.

Shape suffixes: B batch, C channels, H height, W width, T tiles, Q queries of a tile, N items, D dimensions of a query.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.detector import (
    Batch,
    Detector,
    DetectorConfig,
    InputSpec,
    Phase,
    Runtime,
    Scores,
    evaluating,
    finite_or_stop,
)
from models.errors import ConfigError
from models.parts import histogram_error
from models.parts.histogram import LogHistogram
from models.parts.maps import gaussian_blur
from models.parts.similarity import gms_map, reconstruction_loss
from models.parts.unet import UNet, check_size

Mode = Literal["none", "skip", "pmb"]
Query = Literal["channel_map", "pixel", "block"]
LARGEST_ERROR = 2.0  # of absolute difference and gradient similarity together
DECAYS_AT = (0.8, 0.9)  # shares of the epochs after which the learning rate falls to a fifth


class PMADConfig(DetectorConfig):
    """PMAD's options; the defaults suit 64 to 128 px on CPU. At full size: width 64, lr 1e-4, batch 32, 300 epochs,
    200 items, partitions [16,8,8,4], warm-up 15."""

    epochs: int = Field(default=12, ge=1)
    batch_size: int = Field(default=8, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    width: int = Field(default=16, ge=1)
    modes: tuple[Mode, Mode, Mode, Mode] = ("none", "none", "none", "pmb")  # full resolution, 1/2, 1/4, 1/8
    partitions: tuple[int, int, int, int] = (4, 4, 2, 2)  # tiles a side at each level
    items: int = Field(default=50, ge=1)  # of each memory
    query: Query = "channel_map"
    shared_memory: bool = False  # one memory for all tiles of a level: for objects that are not aligned
    temperature: float = Field(default=0.05, gt=0)
    warmup: int = Field(default=3, ge=0)  # epochs without shrinking: it stops gradients
    lambda_entropy: float = Field(default=2e-4, ge=0)
    max_memory: int = Field(default=50_000_000, ge=1)  # parameters of one level's memories
    gms_scales: int = Field(default=4, ge=1, le=4)
    error: Literal["abs", "gms", "both"] = "gms"
    hee: bool = True
    kappa_map: float = Field(default=0.0, ge=0)
    kappa_image: float = Field(default=0.0, ge=0)
    blur: float = Field(default=2.0, ge=0)  # sigma in pixels at 128 px, scaled with the image's height
    score: Literal["max", "mean"] = "mean"


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
    """Answers a feature map with a mixture of memory items, tile by tile; nothing else of the map passes."""

    def __init__(self, channels: int, size: tuple[int, int], side: int, config: PMADConfig) -> None:
        super().__init__()
        area = (size[0] // side) * (size[1] // side)
        dims = {"channel_map": area, "pixel": channels, "block": channels * area}[config.query]
        memories = 1 if config.shared_memory else side**2
        if memories * config.items * dims > config.max_memory:
            raise ConfigError(
                "A level's memories have at most max_memory parameters.",
                f"{memories * config.items * dims:,} for {memories} memories of {config.items} items of {dims} dimensions",
                "Choose --set query=channel_map, fewer --set items=..., or more partitions.",
            )
        self.side, self.query, self.temperature = side, config.query, config.temperature
        self.items = nn.Parameter(torch.randn(memories, config.items, dims))
        self.shrinks = True  # off while the learner warms up
        self._usage: tuple[Tensor, Tensor] | None = None

    def usage(self) -> tuple[Tensor, Tensor]:
        """Entropies and maxima of the weights [B, T, Q] in the last forward pass in training mode; asked for once."""
        assert self._usage is not None
        found, self._usage = self._usage, None
        return found

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        size = maps_BCHW.shape[2:]
        tiles = tile(maps_BCHW, self.side)
        queries = {"channel_map": tiles, "pixel": tiles.transpose(2, 3), "block": tiles.flatten(2).unsqueeze(2)}[
            self.query
        ]
        similarity = F.normalize(queries, dim=-1) @ F.normalize(self.items, dim=-1).transpose(1, 2)
        weights_BTQN = (similarity / self.temperature).softmax(-1)
        if self.training:
            entropy = -(weights_BTQN * weights_BTQN.clamp_min(1e-12).log()).sum(-1)
            self._usage = entropy, weights_BTQN.detach().amax(-1)
        if self.shrinks:
            weights_BTQN = shrink(weights_BTQN)
        answers = weights_BTQN @ self.items
        if self.query == "pixel":
            answers = answers.transpose(2, 3)
        return untile(answers.reshape(tiles.shape), self.side, (size[0], size[1]))


class PMAD(Detector):
    """The auto-encoder with its memories, and the constants of the histograms."""

    error_top: Tensor
    mode_cap: Tensor

    def __init__(self, config: PMADConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        del pretrained  # nothing here is
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
        return PartitionMemory(config.width * min(8, 2**level), (height, width), side, config)

    def memories(self) -> list[PartitionMemory]:
        """The memories, fine to coarse."""
        return [part for part in self.network.bridges if isinstance(part, PartitionMemory)]

    def errors(self, images_BCHW: Tensor) -> Tensor:
        """How unlike each image its reconstruction is, at each pixel, [B, H, W]."""
        rebuilt = (self.network(2 * images_BCHW - 1) + 1) / 2
        found = torch.zeros_like(images_BCHW[:, 0])
        if self.config.error in ("abs", "both"):
            found = found + (rebuilt - images_BCHW).abs().mean(1)
        if self.config.error in ("gms", "both"):
            found = found + gms_map(images_BCHW, rebuilt, self.config.gms_scales)
        return found

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        sigma_px = self.config.blur * self.spec.height_px / 128
        with evaluating(self), torch.no_grad():
            # One by one: shrinking drops an item from one step of the last digit to the next, and that digit hangs on the
            # size of the batch.
            errors = torch.cat([self.errors(image.unsqueeze(0)) for image in images])
            if self.config.hee:
                background = histogram_error.background(errors, self.error_top, self.mode_cap)
                heatmap, judged = (
                    gaussian_blur(histogram_error.subtract(errors, background, kappa), sigma_px)
                    for kappa in (self.config.kappa_map, self.config.kappa_image)
                )
            else:
                heatmap = judged = gaussian_blur(errors, sigma_px)
            flat = judged.flatten(1)
        return Scores(flat.amax(1) if self.config.score == "max" else flat.mean(1), heatmap)

    def learner(self, runtime: Runtime) -> PMADLearner:
        return PMADLearner(self, runtime)


class PMADLearner:
    """Phases: `rebuild`; with HEE also `range` and `modes` over held-out normals."""

    def __init__(self, detector: PMAD, runtime: Runtime) -> None:
        config = detector.config
        self.detector = detector.to(runtime.device)
        self.runtime = runtime
        self.config = config
        self.phases = (
            Phase("rebuild", config.epochs),
            *((Phase("range", 1, "held_out"), Phase("modes", 1, "held_out")) if config.hee else ()),
        )
        self.network = runtime.wrap(detector.network)
        self.optimizer = torch.optim.Adam(detector.network.parameters(), lr=config.lr)
        self.phase = ""
        self.epoch = 0  # finished epochs of the current phase
        self._histogram = LogHistogram(1e-6, LARGEST_ERROR)

    def start(self, phase: str) -> None:
        self.phase, self.epoch = phase, 0
        self.detector.eval()
        if phase == "rebuild":
            self.network.train()
        self._set_shrinking()

    def _set_shrinking(self) -> None:
        warming = self.phase == "rebuild" and self.epoch < min(self.config.warmup, self.config.epochs - 1)
        for memory in self.detector.memories():
            memory.shrinks = not warming

    def step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.images.to(self.runtime.device, non_blocking=True)
        if self.phase == "rebuild":
            return self._rebuild(images)
        with torch.no_grad():
            errors = self.detector.errors(images)
            if self.phase == "range":
                self._histogram.add(errors)
            else:
                self._histogram.add(histogram_error.background(errors, self.detector.error_top, LARGEST_ERROR).mode)
        return {}

    def _rebuild(self, images: Tensor) -> dict[str, Tensor]:
        rebuilt = (self.network(2 * images - 1) + 1) / 2
        terms = reconstruction_loss(images, rebuilt, self.config.gms_scales, self.runtime.mean)
        loss = terms["mse"] + terms["gms"] + terms["ssim"]
        for number, memory in enumerate(self.detector.memories()):
            entropy, largest = (self.runtime.mean(values) for values in memory.usage())
            loss = loss + self.config.lambda_entropy * entropy
            terms |= {f"entropy_{number}": entropy, f"largest_{number}": largest}
        losses = {"loss": loss.detach()} | {name: term.detach() for name, term in terms.items()}
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        finite_or_stop(self.phase, losses)
        self.optimizer.step()
        return losses

    def end_epoch(self) -> None:
        self.epoch += 1
        if self.phase == "rebuild":
            passed = sum(self.epoch >= math.ceil(share * self.config.epochs) for share in DECAYS_AT)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * 0.2**passed
        else:
            self._histogram.all_reduce(self.runtime.all_reduce_sum)
        self._set_shrinking()

    def finish(self, phase: str) -> None:
        if phase == "range":
            self.detector.error_top.fill_(self._histogram.quantile(0.999))
        elif phase == "modes":
            self.detector.mode_cap.fill_(self._histogram.quantile(0.99))
        self._histogram.counts = torch.zeros_like(self._histogram.counts)

    def state_dict(self) -> dict[str, Any]:
        return {
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "histogram": self._histogram.counts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
        self._histogram.counts = state["histogram"]
        self._set_shrinking()
