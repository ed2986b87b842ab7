"""Cycle-GAN AD: losses by hand, schedule, views, and a score that is a sum over one image alone."""

from __future__ import annotations

import pytest
import torch
from detectorkit import batches, build, run_phase
from textures import textures, with_defects
from torch import Tensor, nn

from models.cyclegan import CycleGAN, CycleGANLearner
from models.errors import ConfigError, InputError
from models.parts.maps import gaussian_blur
from models.parts.rates import linear
from models.runtime import Runtime

SIZE = (32, 48)
SMALL = {"ngf": 4, "blocks": 1, "ndf": 4, "epochs": 2, "batch_size": 4}


def cyclegan(size_px: tuple[int, int] = SIZE, **options: object) -> CycleGAN:
    torch.manual_seed(0)
    detector = build("cyclegan", size_px, **(SMALL | options))
    assert isinstance(detector, CycleGAN)
    return detector


def learner_of(detector: CycleGAN, seed: int = 0) -> CycleGANLearner:
    learner = detector.learner(Runtime(seed=seed))
    learner.start("translate")
    return learner


def pairs(count: int = 8) -> list:
    bad, _ = with_defects(textures(count, *SIZE, seed=2))
    return batches(textures(count, *SIZE), 4, bad)


def test_a_new_residual_generator_is_the_identity_and_the_papers_is_not():
    images = textures(4, *SIZE)
    near, far = cyclegan(residual=True).score(images).image, cyclegan(residual=False).score(images).image
    assert near.tolist() == [0, 0, 0, 0]
    assert float(far.min()) > 100


class Constant(nn.Module):
    """A network that adds a constant, or answers with it."""

    def __init__(self, value: float, add: bool) -> None:
        super().__init__()
        self.value, self.add = nn.Parameter(torch.tensor(value)), add

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value if self.add else self.value.expand(len(x), 1, 2, 2)


def test_losses_of_constant_networks_are_those_by_hand():
    learner = learner_of(cyclegan(lambda_cycle=10))
    learner.wrapped |= {"to_normal": Constant(0.1, True), "to_anomalous": Constant(0.2, True)}
    learner.normal_judge, learner.anomalous_judge = Constant(0.3, False), Constant(0.6, False)
    learner.wrapped |= {"normal_judge": learner.normal_judge, "anomalous_judge": learner.anomalous_judge}
    (batch, _) = pairs()
    losses = {name: float(value) for name, value in learner.step(batch).items()}
    assert losses["adversarial"] == pytest.approx(0.7**2 + 0.4**2)
    # There and back: both constants.
    assert losses["cycle"] == pytest.approx(0.3 + 0.3, rel=1e-5)
    assert losses["identity"] == pytest.approx(0.1 + 0.2, rel=1e-5)
    assert losses["loss"] == pytest.approx(0.65 + 10 * 0.6 + 5 * 0.3, rel=1e-5)
    assert losses["judge_normal"] == pytest.approx(0.5 * (0.7**2 + 0.3**2))
    assert losses["judge_anomalous"] == pytest.approx(0.5 * (0.4**2 + 0.6**2))


class Brightness(nn.Module):
    """A discriminator that answers with the mean of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.gain * x.mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_the_other_class_is_wrong_to_a_discriminator_as_fakes_are(weight: float):
    learner = learner_of(cyclegan(jitter=False, views=1, other_class=weight))
    learner.normal_judge = learner.anomalous_judge = Brightness()
    learner.wrapped |= {"normal_judge": learner.normal_judge, "anomalous_judge": learner.anomalous_judge}
    learner.wrapped |= {"to_normal": Constant(-0.1, True), "to_anomalous": Constant(0.3, True)}
    normal, anomalous = torch.full((2, 3, *SIZE), 0.6), torch.full((2, 3, *SIZE), 0.9)
    (batch,) = batches(normal, 2, anomalous)
    losses = {name: float(value) for name, value in learner.step(batch).items()}
    # In [-1, 1].
    normal_1, anomalous_1 = 0.2, 0.8
    wrong = ((anomalous_1 - 0.1) ** 2 + weight * anomalous_1**2) / (1 + weight)
    assert losses["judge_normal"] == pytest.approx(0.5 * ((1 - normal_1) ** 2 + wrong), rel=1e-5)
    wrong = ((normal_1 + 0.3) ** 2 + weight * normal_1**2) / (1 + weight)
    assert losses["judge_anomalous"] == pytest.approx(0.5 * ((1 - anomalous_1) ** 2 + wrong), rel=1e-5)


@pytest.mark.parametrize(("weight", "kinds"), [(0.0, 2), (1.0, 3)])
def test_discriminators_see_so_many_views_of_each_image_and_generators_one(weight: float, kinds: int):
    learner = learner_of(cyclegan(views=5, other_class=weight))
    learner.normal_judge = judge = Brightness()
    learner.wrapped |= {"normal_judge": judge}
    shown = []
    learner.wrapped["to_anomalous"].register_forward_pre_hook(lambda _, given: shown.append(len(given[0])))
    # Of four images.
    learner.step(pairs()[0])
    # The generators' fakes, then reals, fakes, and the other class.
    assert judge.seen == [4, kinds * 5 * 4]
    assert shown == [3 * 4]


def test_views_of_an_image_differ_and_follow_each_other_in_whole_batches():
    # Of one value each: turning changes nothing, another contrast does.
    images = torch.linspace(0.2, 0.8, 4).view(4, 1, 1, 1).expand(4, 3, *SIZE)
    seen = {}
    for jitter in (True, False):
        learner = learner_of(cyclegan(views=3, jitter=jitter, other_class=0))
        learner.wrapped["normal_judge"].register_forward_pre_hook(
            lambda _, given, jitter=jitter: seen.update({jitter: given[0]})
        )
        learner.step(batches(images, 4, images)[0])
    real = (seen[True][:12] + 1) / 2
    assert len({float(one.mean()) for one in real}) == 12
    torch.testing.assert_close((seen[False][:12] + 1) / 2, images.repeat(3, 1, 1, 1))


def test_discriminators_get_no_gradient_from_the_generators_loss():
    learner = learner_of(cyclegan())
    judges = (learner.normal_judge, learner.anomalous_judge)
    learnt, judged = [], []

    def note(network: nn.Module, _: object, verdicts: Tensor) -> None:
        learnt.append({parameter.requires_grad for parameter in network.parameters()})
        judged.append(verdicts.requires_grad)

    for judge in judges:
        judge.register_forward_hook(note)
    learner.step(pairs()[0])
    # The generators' pass through both, then their own.
    assert learnt == [{False}, {False}, {True}, {True}]
    assert judged == [True] * 4
    for network in (*judges, learner.detector):
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_rate_falls_step_by_step_after_the_first_epoch():
    learner = learner_of(cyclegan(epochs=4))
    rates = []
    for _ in range(4):
        for batch in pairs():
            learner.step(batch)
            (rate,) = {group["lr"] for one in learner.optimizers for group in one.param_groups}
            rates.append(rate)
        learner.end_epoch()
        continued = learner_of(cyclegan(epochs=4))
        continued.load_state_dict(learner.state_dict())
        learner = continued
    # Two steps an epoch.
    assert len(rates) == 8
    reached = [0, 0, 1, 1.5, 2, 2.5, 3, 3.5]
    assert rates == pytest.approx([5e-4 * linear(0.1)(epoch, 4) for epoch in reached])


def test_the_score_is_the_sum_of_squares_of_what_changed():
    detector = cyclegan(residual=False)
    images = textures(3, *SIZE)
    with torch.no_grad():
        changed = detector.to_normal(2 * images - 1) - (2 * images - 1)
    torch.testing.assert_close(detector.score(images).image, changed.square().flatten(1).sum(1))
    squared = changed.square().sum(1)
    torch.testing.assert_close(detector.score(images).heatmap, gaussian_blur(squared, 0.5), rtol=1e-4, atol=1e-4)
    # New: the identity.
    same = cyclegan(residual=True).score(images)
    assert same.image.tolist() == [0, 0, 0]
    assert float(same.heatmap.abs().max()) == 0


def test_small_changes_are_not_lost_to_rounding():
    detector = cyclegan(residual=True)
    with torch.no_grad():
        # Far below the last digit of a pixel.
        detector.to_normal.layers[-2].bias.fill_(1e-9)
    images = textures(1, *SIZE)
    assert float(detector.score(images).image) == pytest.approx(3 * SIZE[0] * SIZE[1] * 1e-18, rel=1e-3)


def test_what_is_drawn_follows_from_seed_and_step():
    first, again, other = (
        run_phase(cyclegan().learner(Runtime(seed=seed)), "translate", pairs()) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_the_identity_term_falls_and_defects_change_more_than_normals():
    detector = cyclegan((32, 32), epochs=12, lr=2e-3, residual=False, jitter=False)
    normal, bad = textures(12, 32, 32), with_defects(textures(12, 32, 32, seed=2))[0]
    losses = run_phase(detector.learner(Runtime()), "translate", batches(normal, 4, bad))
    assert losses[-1]["identity"] < 0.5 * losses[0]["identity"]


def test_a_batch_without_anomalous_images_is_refused():
    learner = learner_of(cyclegan())
    with pytest.raises(InputError, match=r"learns from pairs.*Got: a batch without anomalous ones\. Name some"):
        learner.step(batches(textures(2, *SIZE), 2)[0])


@pytest.mark.parametrize("size", [(20, 64), (64, 66)])
def test_sizes_that_leave_no_patch_are_refused(size: tuple[int, int]):
    with pytest.raises(ConfigError, match=rf"multiples of 4 and at least 24 px a side\. Got: {size[0]}x{size[1]}\."):
        cyclegan(size)
