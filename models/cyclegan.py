"""Cycle-GAN AD: industrial and medical anomaly detection through cycle-consistent adversarial networks
(Bougaham, Delchevalerie et al., Neurocomputing 614, 2024, arXiv 2302.05154).

Two generators learn to translate normal images into anomalous ones and back.
At scoring every image goes through the one that makes images normal: a normal image should come back as it was, an
anomalous one repaired, and what changed is the anomaly.
It learns from anomalous images, so its figures stand apart from those of detectors that do not.

Departures from the paper and its published code:

* The learning rate falls step by step, after a tenth of the epochs and no sooner than the second; the code's falls from
  epoch to epoch, of which it has 200. A fit of six that ends at a fifth of the rate ends somewhere.
* Images are zoomed, shifted and given other contrasts (`jitter`; not in the paper) beside the paper's flips and turns:
  without that the discriminators know some twenty anomalous images by heart, and what is translated is the kind of
  picture that those are.
* A discriminator sees `views` views of each real image at a step, and as many fakes; the paper's sees one.
  And it learns the other class's real images as fakes too (`other_class`; 0 is the paper's): otherwise it tells real
  from made, which the generators are taught by, and need not know what is anomalous.
* Pairs of normal and anomalous images are drawn anew each epoch from the fit's seed; the code draws one list, unseeded.
* The map (squared residual, blurred) is ours; the code has none. Scores are not rounded.
* The cycle weighs 0.1 (`lambda_cycle`), the paper's weighs 10.
  At 64 px and with a few thousand pairs a heavy cycle keeps the generators at the identity: they repair nothing, and
  hide what the way back needs.
* Images that are all grey are one channel, as in the paper, and whether they are is found out by `retroscan fit`.
* `residual=true` lets generators predict the change instead of the whole image: a new one is the identity, where the
  paper's generator needs many epochs to come. `residual=false` is the paper's.
* The deployable threshold comes from held-out anomalous images, lowered by a margin (`retroscan fit` sets it).
  The paper's, the lowest score of the anomalous test images, is an oracle: `retroscan evaluate` reports it as one.
* The paper's second score compares Inception features of input and output; it is left out.

Only the generator that scores is saved; the others live as long as the fit.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from models.detector import Batch, Detector, InputSpec, Phase, Scores, TrainedConfig, evaluating, finite_or_stop
from models.errors import ConfigError, InputError
from models.parts.adversarial import Discriminator, Generator, ReplayBuffer, is_fake, is_real
from models.parts.augmentation import augmented
from models.parts.maps import gaussian_blur
from models.parts.rates import linear, set_rate
from models.runtime import Runtime

# Below it the discriminator has no patch left.
SMALLEST_PX = 24
# The rate falls to zero after a tenth of the epochs.
SCHEDULE = linear(0.1)
# Sigma in pixels at a height of 128.
BLUR = 2.0


class CycleGANConfig(TrainedConfig):
    """Cycle-GAN AD's options; the defaults suit 48 to 128 px on CPU."""

    epochs: int = Field(default=6, ge=1)
    batch_size: int = Field(default=4, ge=1)
    lr: float = Field(default=5e-4, gt=0)
    # Channels of a generator at full resolution, and of a discriminator's first layer.
    ngf: int = Field(default=16, ge=1)
    ndf: int = Field(default=16, ge=1)
    # Residual blocks of a generator.
    blocks: int = Field(default=3, ge=0)
    # Whether a generator predicts the change, or the whole image.
    residual: bool = True
    lambda_cycle: float = Field(default=0.1, ge=0)
    lambda_identity: float = Field(default=5.0, ge=0)
    # Of each real image that the discriminators see in a step.
    views: int = Field(default=8, ge=1)
    # What real images of the other class weigh beside fakes.
    other_class: float = Field(default=1.0, ge=0)
    # Whether images are zoomed, shifted and given other contrasts, beside flips and turns.
    jitter: bool = True


class CycleGANLearner:
    """One phase, `translate`: generators, then discriminators, on pairs of normal and anomalous images."""

    def __init__(self, detector: CycleGAN, runtime: Runtime) -> None:
        config, channels = detector.config, detector.spec.channels
        self.detector = detector.to(runtime.device)
        self.runtime = runtime
        self.config = config
        self.phases: tuple[Phase, ...] = (Phase("translate", config.epochs),)
        with torch.random.fork_rng():
            # Equal on every rank.
            torch.manual_seed(runtime.seed)
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
        # What is drawn follows from seed and step.
        self.steps = 0
        # Of them before this epoch.
        self.begun = 0
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
        # No gradient of the generators' losses.
        for judge in (self.normal_judge, self.anomalous_judge):
            judge.requires_grad_(False)
        # The generators see one view.
        first = slice(len(batch.images))
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
        generators["loss"].backward()
        (judges["judge_normal"] + judges["judge_anomalous"]).backward()
        # All of them before any update.
        finite_or_stop(self.phase, losses)
        for optimizer in self.optimizers:
            optimizer.step()
        return losses

    def _mine(self, total: int) -> list[int]:
        """Where this rank's rows lie in `views` global batches, which all that is drawn is drawn for on every rank."""
        return [
            view * total + row for view in range(self.config.views) for row in range(total)[self.runtime.mine(total)]
        ]

    def _augmented(self, images: Tensor, total: int, draw: torch.Generator) -> Tensor:
        """All `views` of this rank's images, view by view."""
        views = self.config.views
        repeated = images.to(self.runtime.device, non_blocking=True).repeat(views, 1, 1, 1)
        return augmented(repeated, draw, jitter=self.config.jitter, rows=self._mine(total), of=views * total)

    def _with_earlier(self, fakes: Tensor, buffer: ReplayBuffer, total: int, draw: torch.Generator) -> Tensor:
        """As many fakes as views of real images: these, in part exchanged for earlier ones, then earlier ones."""
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
        """Losses of the discriminators, on real images, on fakes old and new, and on the other class's real images."""
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
            set_rate(optimizer, self.config.lr * SCHEDULE(reached, self.config.epochs))

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


class CycleGAN(Detector):
    """The generator that makes images normal."""

    def __init__(self, config: CycleGANConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        # Nothing here is pretrained.
        del pretrained
        super().__init__()
        self.config: CycleGANConfig = config
        self.spec = spec
        sides = spec.size_px
        if min(sides) < SMALLEST_PX or any(side % 4 for side in sides):
            raise ConfigError(
                f"Images must be multiples of 4 and at least {SMALLEST_PX} px a side.",
                f"{sides[0]}x{sides[1]}",
                "Choose another --size, such as 64.",
            )
        self.to_normal = Generator(spec.channels, config.ngf, config.blocks, residual=config.residual)

    @property
    def one_graph(self) -> bool:
        return True

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        with evaluating(self), torch.no_grad():
            squared_BHW = self.to_normal.change(2 * images - 1).square().sum(1)
            heatmap = gaussian_blur(squared_BHW, BLUR * self.spec.height_px / 128)
            sse = squared_BHW.flatten(1).sum(1)
        return Scores(sse, heatmap)

    def learner(self, runtime: Runtime) -> CycleGANLearner:
        return CycleGANLearner(self, runtime)
