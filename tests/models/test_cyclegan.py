"""Cycle-GAN AD: published sizes, losses by hand, buffers, schedule, and a score that is a sum over one image alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from detectorkit import batches, build, run_phase
from textures import textures, with_defects
from torch import Tensor, nn

from models.cyclegan import (
    CycleGAN,
    CycleGANLearner,
    Discriminator,
    Generator,
    ReplayBuffer,
    decay,
    is_fake,
    is_real,
    turned,
    varied,
    ways,
)
from models.detector import Runtime
from models.errors import ConfigError, InputError

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


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (lambda: Generator(3, 64, 9), 11_378_179),
        (lambda: Generator(1, 64, 9), 11_365_633),
        (lambda: Generator(3, 64, 6), 7_837_699),
        (lambda: Generator(3, 16, 3), 272_515),
        (lambda: Discriminator(3, 64), 2_764_737),
        (lambda: Discriminator(3, 16), 175_089),
    ],
)
def test_parameters_are_the_published_ones(network, parameters: int):
    with torch.device("meta"):
        assert count(network()) == parameters


def test_outputs_have_the_published_shapes():
    judge = Discriminator(1, 2)
    assert judge(torch.zeros(1, 1, 256, 256)).shape == (1, 1, 30, 30)
    assert judge(torch.zeros(1, 1, 64, 64)).shape == (1, 1, 6, 6)
    made = Generator(3, 2, 1)(torch.randn(2, 3, 64, 32))
    assert made.shape == (2, 3, 64, 32)
    assert made.abs().max() < 1


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
    learner = learner_of(cyclegan(augment="none", lambda_cycle=10))
    learner.wrapped |= {"to_normal": Constant(0.1, True), "to_anomalous": Constant(0.2, True)}
    learner.normal_judge, learner.anomalous_judge = Constant(0.3, False), Constant(0.6, False)
    learner.wrapped |= {"normal_judge": learner.normal_judge, "anomalous_judge": learner.anomalous_judge}
    (batch, _) = pairs()
    losses = {name: float(value) for name, value in learner.step(batch).items()}
    assert losses["adversarial"] == pytest.approx(0.7**2 + 0.4**2)
    assert losses["cycle"] == pytest.approx(0.3 + 0.3, rel=1e-5)  # there and back: both constants
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
    learner = learner_of(
        cyclegan(augment="none", zoom=0, shift=0, contrast=0, views=1, other_class=weight, residual=True)
    )
    learner.normal_judge = learner.anomalous_judge = Brightness()
    learner.wrapped |= {"normal_judge": learner.normal_judge, "anomalous_judge": learner.anomalous_judge}
    learner.wrapped |= {"to_normal": Constant(-0.1, True), "to_anomalous": Constant(0.3, True)}
    normal, anomalous = torch.full((2, 3, *SIZE), 0.6), torch.full((2, 3, *SIZE), 0.9)
    (batch,) = batches(normal, 2, anomalous)
    losses = {name: float(value) for name, value in learner.step(batch).items()}
    normal_1, anomalous_1 = 0.2, 0.8  # in [-1, 1]
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
    learner.step(pairs()[0])  # of four images
    assert judge.seen == [4, kinds * 5 * 4]  # the generators' fakes, then reals, fakes, and the other class
    assert shown == [3 * 4]


def test_views_of_an_image_differ_and_follow_each_other_in_whole_batches():
    learner = learner_of(cyclegan(views=3, augment="none", zoom=0, shift=0))
    images = torch.linspace(0.2, 0.8, 4).view(4, 1, 1, 1).expand(4, 3, *SIZE)
    found = learner._augmented(images, 4, torch.Generator().manual_seed(0))
    assert len(found) == 12
    assert len({float(one.mean()) for one in found}) == 12
    unchanged = learner_of(cyclegan(views=3, augment="none", zoom=0, shift=0, contrast=0))
    found = unchanged._augmented(images, 4, torch.Generator().manual_seed(0))
    assert torch.equal(found, images.repeat(3, 1, 1, 1))


def test_least_squares_verdicts():
    assert is_real(torch.tensor([1.0, 0.5, 0.0])).tolist() == [0, 0.25, 1]
    assert is_fake(torch.tensor([1.0, 0.5, 0.0])).tolist() == [1, 0.25, 0]


def test_discriminators_get_no_gradient_from_the_generators_loss(monkeypatch: pytest.MonkeyPatch):
    learner = learner_of(cyclegan())
    (batch, _) = pairs()
    judges = (learner.normal_judge, learner.anomalous_judge)
    with monkeypatch.context() as patch:  # their own losses left out, only the generators' reach them
        nothing = torch.zeros((), requires_grad=True)
        patch.setattr(learner, "_judges", lambda *_: {"judge_normal": nothing * 1, "judge_anomalous": nothing * 1})
        learner.step(batch)
    for judge in judges:
        assert all(parameter.grad is None for parameter in judge.parameters())
    assert all(parameter.grad is not None for parameter in learner.detector.parameters())
    learner.step(batch)
    for judge in judges:
        assert all(parameter.grad is not None for parameter in judge.parameters())


def test_a_buffer_keeps_fifty_without_graph_and_swaps_half_of_the_time():
    buffer, generator = ReplayBuffer(), torch.Generator().manual_seed(0)
    images = torch.arange(400.0).view(-1, 1, 1, 1).requires_grad_()
    first = buffer.exchange(images[:50], generator)
    assert torch.equal(first, images[:50])
    later = buffer.exchange(images[50:], generator)
    assert len(buffer.images) == 50
    assert not any(image.requires_grad for image in [*buffer.images, first, later])
    old = (later != images[50:].detach()).float().mean()
    assert 0.4 < float(old) < 0.6
    assert len({float(image) for image in buffer.images}) == 50
    assert any(float(image) >= 200 for image in buffer.images)
    kept = {float(image) for image in buffer.images}
    drawn = [float(image) for image in buffer.draw(1000, generator)]
    assert len(drawn) == 1000
    assert set(drawn) == kept  # one of fifty is missing once in ten million
    assert {float(image) for image in buffer.images} == kept


def test_the_rate_is_constant_for_a_tenth_then_falls_to_nothing():
    factors = [decay(epoch, 20, 0.1) for epoch in range(21)]
    assert factors[:3] == [1, 1, 1]
    assert factors[-1] == 0
    steps = [a - b for a, b in itertools.pairwise(factors[2:])]
    assert steps == pytest.approx([1 / 18] * 18)


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
    assert len(rates) == 8  # two steps an epoch
    reached = [0, 0, 1, 1.5, 2, 2.5, 3, 3.5]
    assert rates == pytest.approx([5e-4 * decay(epoch, 4, 0.1) for epoch in reached])


@pytest.mark.parametrize(
    ("augment", "size", "most"),
    [("none", (8, 8), 1), ("flip", (8, 8), 2), ("dihedral", (8, 8), 8), ("dihedral", (8, 12), 4)],
)
def test_augmentation_draws_every_way_its_shape_allows(augment: str, size: tuple[int, int], most: int):
    image = torch.rand(1, 1, *size)
    found = turned(image.repeat(200, 1, 1, 1), ways(200, augment, torch.Generator().manual_seed(0)))
    assert len({tuple(one.flatten().tolist()) for one in found}) == most


def test_the_score_is_the_sum_of_squares_of_what_changed():
    detector = cyclegan(residual=False)
    images = textures(3, *SIZE)
    with torch.no_grad():
        changed = detector.to_normal(2 * images - 1) - (2 * images - 1)
    torch.testing.assert_close(detector.score(images).image, changed.square().flatten(1).sum(1))
    same = cyclegan(residual=True).score(images)  # new: the identity
    assert same.image.tolist() == [0, 0, 0]
    assert float(same.heatmap.abs().max()) == 0


def test_small_changes_are_not_lost_to_rounding():
    detector = cyclegan(residual=True)
    with torch.no_grad():
        detector.to_normal.layers[-2].bias.fill_(1e-9)  # far below the last digit of a pixel
    images = textures(1, *SIZE)
    assert float(detector.score(images).image) == pytest.approx(3 * SIZE[0] * SIZE[1] * 1e-18, rel=1e-3)


def test_scores_follow_the_option():
    images = textures(2, *SIZE)
    found = cyclegan(score="max", blur=0.0, residual=False).score(images)
    assert torch.equal(found.image, found.heatmap.flatten(1).amax(1))


def test_images_are_zoomed_shifted_and_given_other_contrasts_each_by_its_own():
    image = torch.full((1, 1, 40, 40), 0.25)
    image[:, :, 16:24, 20:28] = 1.0  # a square of 8 px, its centre 4 px to the right of the image's
    drawn = torch.zeros(6, 5)
    drawn[1, 0], drawn[2, 1], drawn[3, 2], drawn[4, 3], drawn[5, 4] = -1.0, 0.5, 1.0, -1.0, 1.0
    how = {"zoom": 0.25, "shift": 0.1, "contrast": 0.5}
    same, larger, left, up, darker, gamma = varied(image.repeat(6, 1, 1, 1), drawn, **how)[:, 0]
    torch.testing.assert_close(same, image[0, 0])
    assert float((larger > 0.7).sum()) == pytest.approx(64 * 1.25**2, rel=0.1)
    torch.testing.assert_close(left[16:24, 18:26], torch.ones(8, 8))  # half of a tenth of 40 px
    torch.testing.assert_close(up[12:20, 20:28], torch.ones(8, 8))
    torch.testing.assert_close(darker, image[0, 0] * math.exp(-0.5))
    torch.testing.assert_close(gamma, image[0, 0] ** math.exp(0.5))
    bright = varied(image, torch.ones(1, 5), **how)
    assert float(bright.max()) == 1.0, "nothing leaves the range"
    assert torch.equal(varied(image, torch.ones(1, 5), zoom=0, shift=0, contrast=0), image)


def test_what_is_drawn_follows_from_seed_and_step():
    first, again, other = (
        run_phase(cyclegan().learner(Runtime(seed=seed)), "translate", pairs()) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_the_identity_term_falls_and_defects_change_more_than_normals():
    detector = cyclegan((32, 32), epochs=12, lr=2e-3, residual=False, zoom=0, shift=0, contrast=0)
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
