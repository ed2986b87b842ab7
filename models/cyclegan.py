"""Cycle-GAN AD: industrial and medical anomaly detection through cycle-consistent adversarial networks
(Bougaham, Delchevalerie et al., Neurocomputing 614, 2024, arXiv 2302.05154).

Two generators learn to translate normal images into anomalous ones and back. At scoring every image goes through the
one that makes images normal: a normal image should come back as it was, an anomalous one repaired, and what changed is
the anomaly. It learns from anomalous images, so its figures stand apart from those of detectors that do not.

Departures from the paper and its published code:

* The learning rate falls step by step after the first epoch; the code's falls from epoch to epoch, of which it has 200. A fit
  of six that ends at a fifth of the rate ends somewhere.
* Images are zoomed, shifted and given other contrasts (`zoom`, `shift`, `contrast`; 0 is the paper's) beside the paper's flips
  and turns: without that the discriminators know some twenty anomalous images by heart, and what is translated is the kind
  of picture that those are.
* A discriminator sees `views` views of each real image at a step, and as many fakes; the paper's sees one. And it learns the
  other class's real images as fakes too (`other_class`; 0 is the paper's): otherwise it tells real from made, which the
  generators are taught by, and need not know what is anomalous.
* Pairs of normal and anomalous images are drawn anew each epoch from the fit's seed; the code draws one list, unseeded.
* The map (squared residual, blurred) is ours; the code has none. Scores are not rounded.
* The cycle weighs 0.1 (`lambda_cycle`), the paper's weighs 10. At 64 px and with a few thousand pairs a heavy cycle keeps
  the generators at the identity: they repair nothing, and hide what the way back needs.
* Images that are all grey are one channel, as in the paper, and whether they are is found out by `retroscan fit`.
* `residual=true` lets generators predict the change instead of the whole image: a new one is the identity, where the
  paper's generator needs many epochs to come. `residual=false` is the paper's.
* `score=max` takes the blurred map's largest value; `score=sse`, the paper's, the sum over all pixels.
* The deployable threshold comes from held-out anomalous images, lowered by a margin (`retroscan fit` sets it). The
  paper's, the lowest score of the anomalous test images, is an oracle: `retroscan evaluate` reports it as one.
* The paper's second score compares Inception features of input and output; it is left out.

Only the generator that scores is saved; the others live as long as the fit.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
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
from models.errors import ConfigError, InputError
from models.parts.maps import gaussian_blur
from models.parts.stn import warp

SMALLEST_PX = 24  # below it the discriminator has no patch left
BUFFER = 50  # fakes kept of each kind


class CycleGANConfig(DetectorConfig):
    """Cycle-GAN AD's options; the defaults suit 48 to 128 px on CPU. The paper's: 256 px, ngf and ndf 64, 9 blocks,
    batch 16, 200 epochs, lr 2e-4, lambda_cycle 10."""

    epochs: int = Field(default=6, ge=1)
    batch_size: int = Field(default=4, ge=1)
    lr: float = Field(default=5e-4, gt=0)
    ngf: int = Field(default=16, ge=1)  # channels of a generator at full resolution
    blocks: int = Field(default=3, ge=0)  # residual blocks of a generator
    ndf: int = Field(default=16, ge=1)  # channels of a discriminator's first layer
    lambda_cycle: float = Field(default=0.1, ge=0)
    lambda_identity: float = Field(default=5.0, ge=0)
    views: int = Field(default=8, ge=1)  # of each real image that the discriminators see in a step
    other_class: float = Field(default=1.0, ge=0)  # what real images of the other class weigh beside fakes
    decay_start: float = Field(default=0.1, ge=0, lt=1)  # share of the epochs after which the rate falls to zero
    augment: Literal["none", "flip", "dihedral"] = "dihedral"
    zoom: float = Field(default=0.15, ge=0, lt=1)  # by up to this share, larger or smaller
    shift: float = Field(default=0.08, ge=0, lt=1)  # by up to this share of the sides
    contrast: float = Field(default=0.4, ge=0, le=2)  # of the logarithms of a gain and of a gamma
    residual: bool = True
    blur: float = Field(default=2.0, ge=0)  # sigma in pixels at 128 px, scaled with the image's height
    score: Literal["sse", "max"] = "sse"


class Generator(nn.Module):
    """Encoder, residual blocks, decoder: images [B, C, H, W] in [-1, 1] to such images, with instance norm throughout."""

    def __init__(self, channels: int, width: int, blocks: int, *, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normed(nn.Conv2d(channels, width, 7)),
            *_normed(nn.Conv2d(width, 2 * width, 3, 2, 1)),
            *_normed(nn.Conv2d(2 * width, 4 * width, 3, 2, 1)),
            *(_ResidualBlock(4 * width) for _ in range(blocks)),
            *_normed(nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, output_padding=1)),
            *_normed(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1)),
            nn.ReflectionPad2d(3),
            last := nn.Conv2d(width, channels, 7),
            nn.Tanh(),
        )
        _initialise(self)
        if residual:
            nn.init.zeros_(last.weight)  # new, it is the identity

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The translated images; in residual form they may leave [-1, 1]."""
        out: Tensor = self.layers(images_BCHW)
        return images_BCHW + out if self.residual else out

    def change(self, images_BCHW: Tensor) -> Tensor:
        """Translated minus given images; in residual form without the rounding of a sum and a difference."""
        out: Tensor = self.layers(images_BCHW)
        return out if self.residual else out - images_BCHW


class Discriminator(nn.Module):
    """A 70x70 PatchGAN: one verdict a patch, [B, 1, h, w], 1 for real and 0 for fake, not squashed."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        leaky = nn.LeakyReLU(0.2)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            leaky,
            *(nn.Conv2d(width, 2 * width, 4, 2, 1), nn.InstanceNorm2d(2 * width), leaky),
            *(nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.InstanceNorm2d(4 * width), leaky),
            *(nn.Conv2d(4 * width, 8 * width, 4, 1, 1), nn.InstanceNorm2d(8 * width), leaky),
            nn.Conv2d(8 * width, 1, 4, 1, 1),
        )
        _initialise(self)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The verdicts."""
        verdicts: Tensor = self.layers(images_BCHW)
        return verdicts


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    return convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU()


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normed(nn.Conv2d(channels, channels, 3)),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


def _initialise(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class CycleGAN(Detector):
    """The generator that makes images normal."""

    def __init__(self, config: CycleGANConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        del pretrained  # nothing here is
        super().__init__()
        self.config: CycleGANConfig = config
        self.spec = spec
        sides = (spec.height_px, spec.width_px)
        if min(sides) < SMALLEST_PX or any(side % 4 for side in sides):
            raise ConfigError(
                f"Images must be multiples of 4 and at least {SMALLEST_PX} px a side.",
                f"{sides[0]}x{sides[1]}",
                "Choose another --size, such as 64.",
            )
        self.to_normal = Generator(spec.channels, config.ngf, config.blocks, residual=config.residual)

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            squared_BHW = self.to_normal.change(2 * images - 1).square().sum(1)
            heatmap = gaussian_blur(squared_BHW, self.config.blur * self.spec.height_px / 128)
            sse = squared_BHW.flatten(1).sum(1)
        return Scores(sse if self.config.score == "sse" else heatmap.flatten(1).amax(1), heatmap)

    def learner(self, runtime: Runtime) -> CycleGANLearner:
        return CycleGANLearner(self, runtime)


class ReplayBuffer:
    """Earlier fakes, so that a discriminator does not forget what a generator used to do."""

    def __init__(self, size: int = BUFFER) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def exchange(self, fakes_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """As many images: each fake itself, or with probability 0.5 an earlier one whose place it takes."""
        chosen = []
        for fake in fakes_BCHW.detach():
            if len(self.images) < self.size:
                self.images.append(fake.clone())
                chosen.append(fake)
            elif float(torch.rand((), generator=generator)) < 0.5:
                place = int(torch.randint(self.size, (), generator=generator))
                chosen.append(self.images[place])
                self.images[place] = fake.clone()
            else:
                chosen.append(fake)
        return torch.stack(chosen)

    def draw(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """So many of the kept images, with replacement, which stay."""
        places = torch.randint(len(self.images), (count,), generator=generator)
        return [self.images[place] for place in places.tolist()]


def decay(epoch: float, epochs: int, start: float) -> float:
    """The learning rate's factor after so many epochs: 1 up to a share `start` of all, then linearly to 0."""
    first = start * epochs
    return 1 - max(0.0, epoch - first) / (epochs - first)


def is_real(verdicts: Tensor) -> Tensor:
    """LSGAN: the squared distances from 1."""
    return (verdicts - 1).square()


def is_fake(verdicts: Tensor) -> Tensor:
    """LSGAN: the squared distances from 0."""
    return verdicts.square()


def ways(count: int, augment: str, generator: torch.Generator) -> list[tuple[int, int]]:
    """Whether to flip, and by how many right angles to turn, each of `count` images."""
    if augment == "none":
        return [(0, 0)] * count
    drawn = []
    for _ in range(count):
        flip, turns = (int(torch.randint(high, (), generator=generator)) for high in (2, 4))
        drawn.append((flip, turns if augment == "dihedral" else 0))
    return drawn


def turned(images_BCHW: Tensor, drawn: Sequence[tuple[int, int]]) -> Tensor:
    """Each image flipped and turned in its own way, as far as its shape allows."""
    square = images_BCHW.shape[2] == images_BCHW.shape[3]
    found = torch.empty_like(images_BCHW)
    for place, image, (flip, turns) in zip(found, images_BCHW, drawn, strict=True):
        flipped = image.flip(2) if flip else image
        place.copy_(flipped.rot90(turns if square else 2 * (turns // 2), (1, 2)))
    return found


def varied(images_BCHW: Tensor, drawn_B5: Tensor, *, zoom: float, shift: float, contrast: float) -> Tensor:
    """Images in [0, 1], each zoomed, shifted, and given another gain and gamma; `drawn_B5`, in [-1, 1], says how far."""
    varied_BCHW = images_BCHW
    if zoom or shift:
        transform_B33 = torch.eye(3).to(drawn_B5).repeat(len(drawn_B5), 1, 1)
        transform_B33[:, 0, 0] = transform_B33[:, 1, 1] = (1 + zoom) ** drawn_B5[:, 0]
        transform_B33[:, :2, 2] = 2 * shift * drawn_B5[:, 1:3]
        varied_BCHW = warp(varied_BCHW, transform_B33, padding="border")
    if contrast:
        gain_B111, gamma_B111 = (contrast * drawn_B5[:, 3:]).exp()[:, :, None, None, None].unbind(1)
        varied_BCHW = gain_B111 * varied_BCHW.clamp(0, 1) ** gamma_B111
    return varied_BCHW.clamp(0, 1)


def augmented(
    images_BCHW: Tensor,
    config: CycleGANConfig,
    generator: torch.Generator,
    rows: Sequence[int] | None = None,
    of: int = 0,
) -> Tensor:
    """Images in [0, 1], each turned and varied in a way of its own: drawn for as many images as there are, or for `of`, of
    which these are `rows`."""
    rows = range(len(images_BCHW)) if rows is None else rows
    drawn = ways(max(of, len(rows)), config.augment, generator)
    drawn_B5 = 2 * torch.rand(len(drawn), 5, generator=generator) - 1
    return varied(
        turned(images_BCHW, [drawn[row] for row in rows]),
        drawn_B5[list(rows)].to(images_BCHW),
        zoom=config.zoom,
        shift=config.shift,
        contrast=config.contrast,
    )


class CycleGANLearner:
    """One phase, `translate`: generators, then discriminators, on pairs of normal and anomalous images."""

    def __init__(self, detector: CycleGAN, runtime: Runtime) -> None:
        config, channels = detector.config, detector.spec.channels
        self.detector = detector.to(runtime.device)
        self.runtime = runtime
        self.config = config
        self.phases: tuple[Phase, ...] = (Phase("translate", config.epochs),)
        with torch.random.fork_rng():
            torch.manual_seed(runtime.seed)  # equal on every rank
            self.to_anomalous = Generator(channels, config.ngf, config.blocks, residual=config.residual)
            self.normal_judge = Discriminator(channels, config.ndf)
            self.anomalous_judge = Discriminator(channels, config.ndf)
        for network in (self.to_anomalous, self.normal_judge, self.anomalous_judge):
            network.to(runtime.device)
        self.wrapped = {
            "to_normal": runtime.wrap(detector.to_normal),
            "to_anomalous": runtime.wrap(self.to_anomalous),
            "normal_judge": runtime.wrap(self.normal_judge),
            "anomalous_judge": runtime.wrap(self.anomalous_judge),
        }

        def adam(*networks: nn.Module) -> torch.optim.Adam:
            parameters = [p for network in networks for p in network.parameters()]
            return torch.optim.Adam(parameters, lr=config.lr, betas=(0.5, 0.999))

        self.optimizers = (
            adam(detector.to_normal, self.to_anomalous),
            adam(self.normal_judge),
            adam(self.anomalous_judge),
        )
        self.phase = ""
        self.epoch = 0
        self.steps = 0  # what is drawn follows from seed and step
        self.begun = 0  # of them before this epoch
        self.normal_fakes, self.anomalous_fakes = ReplayBuffer(), ReplayBuffer()

    def start(self, phase: str) -> None:
        self.phase, self.epoch = phase, 0
        for network in self.wrapped.values():
            network.train()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        if batch.anomalous is None:
            raise InputError(
                "Cycle-GAN AD learns from pairs of normal and anomalous images.",
                "a batch without anomalous ones",
                "Name some with --anomalous.",
            )
        self._set_rate()
        self.steps += 1
        draw = torch.Generator().manual_seed((self.runtime.seed * 1_000_003 + self.steps) * 1_009)
        normal, anomalous = (
            2 * self._augmented(images, batch.total, draw) - 1 for images in (batch.images, batch.anomalous)
        )
        for judge in (self.normal_judge, self.anomalous_judge):
            judge.requires_grad_(False)  # no gradient of the generators' losses
        first = slice(len(batch.images))  # the generators see one view
        generators, fake_normal, fake_anomalous = self._generators(normal[first], anomalous[first])
        for judge in (self.normal_judge, self.anomalous_judge):
            judge.requires_grad_(True)
        old_normal, old_anomalous = (
            self._with_earlier(fakes.detach(), buffer, batch.total, draw)
            for buffer, fakes in ((self.normal_fakes, fake_normal), (self.anomalous_fakes, fake_anomalous))
        )
        judges = self._judges(normal, old_normal, anomalous, old_anomalous)
        losses = {name: value.detach() for name, value in (generators | judges).items()}
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        generators["loss"].backward()  # type: ignore[no-untyped-call]
        (judges["judge_normal"] + judges["judge_anomalous"]).backward()  # type: ignore[no-untyped-call]
        finite_or_stop(self.phase, losses)  # all of them before any update
        for optimizer in self.optimizers:
            optimizer.step()
        return losses

    def _mine(self, total: int) -> list[int]:
        """Where this rank's rows lie in `views` global batches. All that is drawn is drawn for these, equally on every rank."""
        return [
            view * total + row for view in range(self.config.views) for row in range(total)[self.runtime.mine(total)]
        ]

    def _augmented(self, images: Tensor, total: int, draw: torch.Generator) -> Tensor:
        """All `views` of this rank's images, view by view."""
        views = self.config.views
        repeated = images.to(self.runtime.device, non_blocking=True).repeat(views, 1, 1, 1)
        return augmented(repeated, self.config, draw, self._mine(total), views * total)

    def _with_earlier(self, fakes: Tensor, buffer: ReplayBuffer, total: int, draw: torch.Generator) -> Tensor:
        """As many fakes as there are views of real images: these, in part exchanged for earlier ones, then earlier ones."""
        shown = buffer.exchange(self.runtime.gather(fakes, total), draw)
        earlier = buffer.draw((self.config.views - 1) * total, draw)
        return torch.stack([*shown, *earlier])[self._mine(total)]

    def _generators(self, normal: Tensor, anomalous: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Losses of the generators, and their fakes. Instance norm keeps images apart, so passes share a batch."""
        fake_normal, same_normal = self.wrapped["to_normal"](torch.cat([anomalous, normal])).chunk(2)
        fake_anomalous, same_anomalous, back_anomalous = self.wrapped["to_anomalous"](
            torch.cat([normal, anomalous, fake_normal])
        ).chunk(3)
        back_normal = self.wrapped["to_normal"](fake_anomalous)
        mean = self.runtime.mean
        verdicts = self.normal_judge(fake_normal), self.anomalous_judge(fake_anomalous)
        adversarial = mean(is_real(verdicts[0])) + mean(is_real(verdicts[1]))
        cycle = mean((back_normal - normal).abs()) + mean((back_anomalous - anomalous).abs())
        identity = mean((same_normal - normal).abs()) + mean((same_anomalous - anomalous).abs())
        loss = adversarial + self.config.lambda_cycle * cycle + self.config.lambda_identity * identity
        terms = {"loss": loss, "adversarial": adversarial, "cycle": cycle, "identity": identity}
        return terms, fake_normal, fake_anomalous

    def _judges(
        self, normal: Tensor, old_normal: Tensor, anomalous: Tensor, old_anomalous: Tensor
    ) -> dict[str, Tensor]:
        """Losses of the two discriminators, on real images, on fakes old and new, and on the other class's real images."""
        mean, weight, losses = self.runtime.mean, self.config.other_class, {}
        for name, real, fakes, others in (
            ("normal", normal, old_normal, anomalous),
            ("anomalous", anomalous, old_anomalous, normal),
        ):
            shown = [real, fakes, others] if weight else [real, fakes]
            on_real, on_fakes, *on_others = self.wrapped[f"{name}_judge"](torch.cat(shown)).chunk(len(shown))
            wrong = mean(is_fake(on_fakes)) + sum(weight * mean(is_fake(on_other)) for on_other in on_others)
            losses[f"judge_{name}"] = 0.5 * (mean(is_real(on_real)) + wrong / (1 + weight))
        return losses

    def end_epoch(self) -> None:
        self.epoch += 1
        self.begun = self.steps

    def _set_rate(self) -> None:
        """By how far the fit has come, in epochs and parts of one: how many steps one has is known after the first."""
        reached = self.epoch * self.steps / self.begun if self.begun else 0.0
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * decay(reached, self.config.epochs, self.config.decay_start)

    def finish(self, phase: str) -> None:
        del phase

    def state_dict(self) -> dict[str, Any]:
        return {
            "to_normal": self.detector.state_dict(),
            "to_anomalous": self.to_anomalous.state_dict(),
            "normal_judge": self.normal_judge.state_dict(),
            "anomalous_judge": self.anomalous_judge.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "epoch": self.epoch,
            "steps": self.steps,
            "normal_fakes": self.normal_fakes.images,
            "anomalous_fakes": self.anomalous_fakes.images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["to_normal"])
        self.to_anomalous.load_state_dict(state["to_anomalous"])
        self.normal_judge.load_state_dict(state["normal_judge"])
        self.anomalous_judge.load_state_dict(state["anomalous_judge"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.epoch = state["epoch"]
        self.steps = self.begun = state["steps"]
        for buffer, name in ((self.normal_fakes, "normal_fakes"), (self.anomalous_fakes, "anomalous_fakes")):
            buffer.images = [image.to(self.runtime.device) for image in state[name]]
