"""MKD: Multiresolution Knowledge Distillation (Salehi et al., CVPR 2021, arXiv 2011.11108).

A small cloner learns, on normal images only, to reproduce several activations of a frozen ImageNet source network, in
value and in direction. Where the two disagree, the image is abnormal.

Departures from the paper and its published code:

* Lambda multiplies the value term, as in the published code; the paper's text multiplies the direction term.
* Training uses all tapped layers and scoring the deepest three, as in the published code (`layers_score` chooses).
* Any tapped backbone can be the source; its cloner keeps the published rule and is shaped to the taps.
  Only VGG-16 is the published one, with a cloner of 343,984 parameters. A source whose taps hold negative values
  (EfficientNet) gets a cloner that pools by average, taps before the ReLU and halves in its first convolution.
* `source_rescale=rms` divides every tapped map by its root mean square over the training set, so that lambda keeps its
  meaning with weights of any origin; `none` is the published setting.
* `map=cosine` is ours: the per-position cosine distance, without any backward pass. `map=gradient` is the paper's.
* Maps are not scaled image by image, as the paper's are before it blurs them, so that they compare between images.
* `selection=avg_late` averages the cloner's weights over the last third of the epochs and estimates its batch-norm
  statistics again. The paper averages the AUROC over late checkpoints, which leaves no single model to deploy.
* SmoothGrad, guided backpropagation and a cloner as large as the source, which the paper compares and does not prefer,
  are left out, and so is the augmentation of its HeadCT experiment.

Shape suffixes: B batch, C channels, H height in pixels, W width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.backbones import Backbone
from models.detector import Batch, Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating, finite_or_stop
from models.errors import ConfigError, InputError
from models.parts.batch_norm import BatchNorm2d, begin_statistics, end_statistics
from models.parts.map_cache import MapCache
from models.parts.maps import cross_opening, enlarged, gaussian_blur
from models.runtime import Runtime

# VGG-16's own.
CONVS_PER_BLOCK = (2, 2, 3, 3, 3)
# Channels of the cloner within a block, as published.
WIDTH = 16
# Sigma in pixels at 128 px, scaled with the image's height.
BLUR = 4.0


class MKDConfig(TrainedConfig):
    """MKD's options; the defaults suit EfficientNet-Lite0 at 128 px."""

    epochs: int = Field(default=60, ge=1)
    # At equal steps as good as the paper's 64, in fewer epochs.
    batch_size: int = Field(default=16, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    backbone: str = "efficientnet_lite0"
    # See models/backbones/weights.py.
    weights: str = "auto"
    norm: str = "native"
    # Tapped layers to train on, as halvings of the input (VGG: pool number).
    layers: tuple[int, ...] = (2, 3, 4, 5)
    layers_score: tuple[int, ...] = (3, 4, 5)
    # 0.5 in the paper's MVTec experiments, 0.01 elsewhere.
    lambda_val: float = Field(default=0.5, ge=0)
    source_rescale: Literal["none", "rms"] = "rms"
    # flat: the loss per image; max: the heatmap's largest value.
    score: Literal["flat", "max"] = "max"
    map: Literal["gradient", "cosine"] = "cosine"
    selection: Literal["last", "avg_late"] = "avg_late"
    # Memory for the source's maps of the training images.
    cache_mib: int = Field(default=4096, ge=0)

    @model_validator(mode="after")
    def _scores_what_it_trains(self) -> Self:
        if not set(self.layers_score) <= set(self.layers) or not self.layers_score:
            raise ConfigError(
                f"layers_score must be among layers {list(self.layers)}.",
                list(self.layers_score),
                "Set both, as in --set layers=[3,4,5] --set layers_score=[4,5].",
            )
        return self


class Cloner(nn.Module):
    """The published compact network, its tapped blocks as wide as the source's taps.

    Five blocks of 3x3 convolutions without bias, each followed by ReLU, and by batch norm before it unless it is the
    block's last, so that outputs can match the source's magnitudes; 2x2 pooling ends a block.
    """

    def __init__(self, channels: dict[int, int], *, signed: bool) -> None:
        super().__init__()
        self.taps = tuple(channels)
        self.signed = signed
        self.blocks = nn.ModuleList()
        before = 3
        for block in range(1, max(channels) + 1):
            # Like EfficientNet's own stem, a signed source's cloner halves in its first convolution: nothing is tapped
            # at full resolution, where two thirds of the time would go.
            stem = signed and block == 1
            layers: list[nn.Module] = []
            for number in range(CONVS_PER_BLOCK[block - 1]):
                last = number == CONVS_PER_BLOCK[block - 1] - 1
                out = channels.get(block, WIDTH) if last else WIDTH
                stride = 2 if stem and number == 0 else 1
                layers.append(nn.Conv2d(before, out, 3, stride, padding=1, bias=False))
                if not last:
                    layers += [BatchNorm2d(out), nn.ReLU()]
                before = out
            if not signed:
                layers += [nn.ReLU(), nn.MaxPool2d(2)]
            elif not stem:
                # "Same" padding rounds odd sizes up, VGG's pools down.
                layers.append(nn.AvgPool2d(2, ceil_mode=True))
            self.blocks.append(nn.Sequential(*layers))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
        # Measured on CPU: a training step on this layout takes two thirds of the time on the default one.
        self.to(memory_format=torch.channels_last)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        """The tapped maps, shallow to deep, shaped as the source's."""
        if x_BCHW.shape[1] == 1:
            x_BCHW = x_BCHW.expand(-1, 3, -1, -1)
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        maps = []
        for number, block in enumerate(self.blocks, start=1):
            x_BCHW = block(x_BCHW)
            if number in self.taps:
                maps.append(x_BCHW)
            if self.signed:
                x_BCHW = F.relu(x_BCHW)
        return tuple(maps)


def disagreement(source: Sequence[Tensor], clone: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Direction and value terms per image and layer, two tensors [B, L] (sec. 3: L_dir, L_val).

    Direction is 1 - cosine over the whole flattened map, value the mean squared difference.
    """
    direction = [1 - F.cosine_similarity(s.flatten(1), c.flatten(1)) for s, c in zip(source, clone, strict=True)]
    value = [(s - c).square().flatten(1).mean(1) for s, c in zip(source, clone, strict=True)]
    return torch.stack(direction, 1), torch.stack(value, 1)


class MKDLearner:
    """Phases: `source` (statistics of its maps), `distil`, and `statistics` (batch norm of the late average)."""

    def __init__(self, detector: MKD, runtime: Runtime) -> None:
        config = detector.config
        self.detector = detector.to(runtime.device)
        self.runtime = runtime
        self.config = config
        self.phases = (
            *((Phase("source", 1),) if config.source_rescale == "rms" else ()),
            Phase("distil", config.epochs),
            *((Phase("statistics", 1),) if config.selection == "avg_late" else ()),
        )
        self.network = runtime.wrap(detector.cloner)
        self.optimizer = torch.optim.Adam(detector.cloner.parameters(), lr=config.lr)
        self.phase = ""
        # Finished epochs of the current phase.
        self.epoch = 0
        # Running mean of the cloner's weights.
        self.late: dict[str, Tensor] = {}
        self.late_count = 0
        # Without augmentation the source's maps never change: computed once an image.
        self._cache = MapCache(config.cache_mib)
        # Sum of squares, and count.
        self._squares = torch.zeros(2, len(config.layers), dtype=torch.float64)

    def start(self, phase: str) -> None:
        self.phase, self.epoch = phase, 0
        self.network.train()
        if phase == "statistics":
            begin_statistics(self.detector.cloner)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.images.to(self.runtime.device, non_blocking=True)
        source = self._source_maps(images, batch.positions)
        if self.phase == "source":
            for layer, maps in enumerate(source):
                self._squares[:, layer] += torch.tensor([maps.double().square().sum().item(), maps.numel()])
            return {}
        if self.phase == "statistics":
            with torch.no_grad():
                self.detector.cloner(images)
            return {}
        source = tuple(s / scale for s, scale in zip(source, self.detector.source_scale, strict=True))
        terms = disagreement(source, self.network(images))
        direction, value = (self.runtime.mean(term.sum(1)) for term in terms)
        loss = direction + self.config.lambda_val * value
        losses = {"loss": loss.detach(), "direction": direction.detach(), "value": value.detach()}
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        finite_or_stop(self.phase, losses)
        self.optimizer.step()
        return losses

    def end_epoch(self) -> None:
        self.epoch += 1
        if self.phase == "source":
            self._squares = self.runtime.all_reduce_sum(self._squares)
        late = self.epoch > self.config.epochs - max(1, self.config.epochs // 3)
        if self.phase == "distil" and self.config.selection == "avg_late" and late:
            self.late_count += 1
            for name, weight in self.detector.cloner.named_parameters():
                mean = self.late.setdefault(name, torch.zeros_like(weight.detach()))
                mean += (weight.detach() - mean) / self.late_count

    def finish(self, phase: str) -> None:
        if phase == "source":
            squares, count = self._squares
            rms = (squares / count).sqrt()
            if not (rms > 0).all():
                raise ConfigError(
                    "source_rescale=rms divides by the source's activations.",
                    f"a layer that is zero on every image ({rms.tolist()})",
                    "Look for constant training images, or use --set source_rescale=none.",
                )
            self.detector.source_scale.copy_(rms)
        elif phase == "distil" and self.late_count:
            with torch.no_grad():
                for name, weight in self.detector.cloner.named_parameters():
                    weight.copy_(self.late[name])
        elif phase == "statistics":
            end_statistics(self.detector.cloner)

    def _source_maps(self, images: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Unscaled maps of the source: from memory where they are all known, computed and kept otherwise."""
        places = positions.tolist()
        kept = self._cache.find(places)
        if kept is not None:
            return tuple(layer.to(images.device) for layer in kept)
        with torch.no_grad():
            maps: tuple[Tensor, ...] = self.detector.source(images)
        self._cache.keep(places, maps)
        return maps

    def state_dict(self) -> dict[str, Any]:
        return {
            "cloner": self.detector.cloner.state_dict(),
            "source_scale": self.detector.source_scale,
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "late": self.late,
            "late_count": self.late_count,
            "squares": self._squares,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.cloner.load_state_dict(state["cloner"])
        self.detector.source_scale.copy_(state["source_scale"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
        self.late = {name: mean.to(self.runtime.device) for name, mean in state["late"].items()}
        self.late_count = state["late_count"]
        self._squares = state["squares"]


class MKD(Detector):
    """A frozen source, a cloner, and one scale a tapped layer."""

    source_scale: Tensor

    def __init__(self, config: MKDConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        self.config: MKDConfig = config
        self.spec = spec
        self.source = Backbone(config.backbone, config.layers, config.weights if pretrained else None, config.norm)
        if self.source.patch is not None:
            raise ConfigError(
                "mkd distils a network whose maps halve from tap to tap.",
                config.backbone,
                "Choose a convolutional one, as in --set backbone=efficientnet_lite0, or padim or knn.",
            )
        self.cloner = Cloner({tap.halvings: tap.channels for tap in self.source.taps()}, signed=self.source.signed)
        self.register_buffer("source_scale", torch.ones(len(config.layers)))
        self._check_shapes()

    def _check_shapes(self) -> None:
        image = torch.zeros(1, 3, self.spec.height_px, self.spec.width_px)
        try:
            with torch.no_grad(), evaluating(self):
                pairs = zip(self.source(image), self.cloner(image), strict=True)
                fits = all(source.shape == clone.shape for source, clone in pairs)
        # A map without pixels.
        except RuntimeError:
            fits = False
        if not fits:
            stride = 2 ** max(self.config.layers)
            raise ConfigError(
                f"{self.config.backbone} tapped down to stride {stride} needs an image of at least {stride} px a side, "
                "best a multiple of it.",
                f"{self.spec.height_px}x{self.spec.width_px}",
                "Choose another --size.",
            )

    @property
    def one_graph(self) -> bool:
        # The gradient map is a backward pass.
        return self.config.map == "cosine"

    def source_record(self) -> dict[str, Any]:
        return self.source.record()

    def source_maps(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """The source's tapped maps, each divided by its training-set scale."""
        return tuple(s / scale for s, scale in zip(self.source(images_BCHW), self.source_scale, strict=True))

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        gradient = self.config.map == "gradient"
        if gradient and torch.is_inference_mode_enabled():
            raise InputError(
                "map=gradient needs autograd.", "a call inside torch.inference_mode()", "Call score() plainly."
            )
        with evaluating(self), torch.set_grad_enabled(gradient):
            x = images.detach().clone().requires_grad_(gradient)
            source = self.source_maps(x)
            layers = zip(self.config.layers, source, self.cloner(x), strict=True)
            pairs = [(s, c) for layer, s, c in layers if layer in self.config.layers_score]
            direction, value = disagreement(*zip(*pairs, strict=True))
            flat_B = (direction + self.config.lambda_val * value).sum(1)
            if gradient:
                # In eval mode the images are independent: one backward of the sum gives every image its own gradient.
                (gradient_BCHW,) = torch.autograd.grad(flat_B.sum(), x)
                raw = gradient_BCHW.abs().sum(1)
            else:
                raw = self._cosine_map(pairs)
            heatmap = gaussian_blur(raw, BLUR * self.spec.height_px / 128)
            if gradient:
                heatmap = cross_opening(heatmap)
        image = flat_B if self.config.score == "flat" else heatmap.flatten(1).amax(1)
        return Scores(image.detach(), heatmap.detach())

    def _cosine_map(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum over layers of 1 - cosine over channels at each position, resized to the input. [B, H, W]"""
        size = self.spec.size_px
        return torch.stack([enlarged(1 - F.cosine_similarity(s, c, dim=1), size) for s, c in pairs]).sum(0)

    def learner(self, runtime: Runtime) -> MKDLearner:
        return MKDLearner(self, runtime)
