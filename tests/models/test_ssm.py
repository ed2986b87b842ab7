"""SSM: painting in what masks hide, refinement that only uncovers, and what a network must not see."""

from __future__ import annotations

import pytest
import torch
from detectorkit import batches, build, run_fit, run_phase
from ssmkit import hidden_error
from textures import textures, with_defects
from torch import Tensor

from models.errors import ConfigError
from models.parts.masks import checkerboard_masks, compose
from models.runtime import Runtime
from models.ssm import NORMAL_QUANTILE, SSM

SIZE = (32, 48)
# On the images' own grid, as published.
SMALL = {"width": 4, "epochs": 2, "batch_size": 4, "grid": 0}


def ssm(size_px: tuple[int, int] = SIZE, **options: object) -> SSM:
    torch.manual_seed(0)
    detector = build("ssm", size_px, **(SMALL | options))
    assert isinstance(detector, SSM)
    return detector


def passes(detector: SSM, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps of the first pass and of the last, and what is uncovered."""
    with torch.no_grad():
        first = detector.first_errors(image)
        last, uncovered = detector.refined(image, first)
    return first[:, 0], last[:, 0], uncovered


def test_hidden_pixels_do_not_reach_the_network():
    detector = ssm()
    torch.nn.init.ones_(detector.network.head.weight)
    mask = checkerboard_masks(8, SIZE)[0]
    image = textures(1, *SIZE)
    hidden_changed = torch.where(mask > 0, image, 1 - image)

    def painted(seen: Tensor) -> Tensor:
        with torch.no_grad():
            return (detector.paint(detector.guess(seen, mask), mask.unsqueeze(0))[0] * (1 - mask)).float()

    assert torch.equal(painted(image), painted(hidden_changed))
    assert not torch.equal(painted(image), painted(1 - hidden_changed))


def test_it_learns_to_paint_in_what_is_hidden_better_than_the_mean_does():
    train, other = textures(24, *SIZE), textures(8, *SIZE, seed=7)
    detector = ssm(epochs=12, lr=5e-3, mirrored=False)
    run_fit(detector, batches(train, 4), batches(textures(2, *SIZE, seed=4), 2))
    assert hidden_error(detector, other) < 0.9 * float((other - train.mean(0)).square().mean())


# --- Refinement


def test_nothing_uncovered_is_the_first_pass_to_the_bit():
    detector = ssm(refine="disjoint")
    # Nothing looks normal.
    detector.normal_below.fill_(0.0)
    first, last, uncovered = passes(detector, textures(1, *SIZE))
    assert torch.equal(first, last)
    assert float(uncovered.max()) == 0


@pytest.mark.parametrize("refine", ["disjoint", "joint"])
@pytest.mark.parametrize("steps", [1, 2])
def test_what_is_uncovered_keeps_its_error(refine: str, steps: int):
    """Otherwise an image all of which is uncovered would be the most normal of all, whatever it shows."""
    detector = ssm(refine=refine, refine_steps=steps)
    detector.normal_below.fill_(10.0)
    first, last, uncovered = passes(detector, textures(1, *SIZE))
    assert float(uncovered.min()) == 1
    assert torch.equal(first, last)
    assert float(first.max()) > 0


@pytest.mark.parametrize("refine", ["disjoint", "joint"])
def test_as_published_what_is_uncovered_has_no_error(refine: str):
    detector = ssm(refine=refine, score="published")
    detector.normal_below.fill_(10.0)
    _, last, uncovered = passes(detector, textures(1, *SIZE))
    assert float(uncovered.min()) == 1
    assert float(last.abs().max()) < 1e-6


@pytest.mark.parametrize("refine", ["disjoint", "joint"])
def test_the_visible_area_never_shrinks_and_refinement_stops_at_the_configured_pass(refine: str):
    """What one pass found normal stays visible, also where the next does not find it so."""
    image, size = textures(1, 64, 64), (64, 64)
    detector = ssm(size)
    with torch.no_grad():
        maps = [detector.first_errors(image)[:, 0]]
    below = detector.suspicion(maps[0].unsqueeze(1)).quantile(0.4)
    detector.normal_below.fill_(below)
    shares = [0.0]
    for steps in (1, 2, 3):
        again = ssm(size, refine=refine, refine_steps=steps)
        again.normal_below.fill_(below)
        _, last, uncovered = passes(again, image)
        maps.append(last)
        shares.append(float(uncovered.mean()))
    assert 0 < shares[1] <= shares[2] <= shares[3] < 1
    expected = torch.zeros(size)
    for before, share in zip(maps, shares[1:], strict=False):
        expected = torch.maximum(expected, detector.normal_blocks(detector.suspicion(before.unsqueeze(1))[0]))
        assert share == pytest.approx(float(expected.mean()))


def test_one_mask_hides_all_that_is_suspect():
    image = textures(1, *SIZE)
    uncovered = torch.zeros(SIZE)
    uncovered[:, :36] = 1
    detector = ssm(refine="joint")
    mask = uncovered.expand(1, 1, 1, *SIZE)
    with torch.no_grad():
        found = detector.examine(image, detector.guesses(image, mask), mask)
        painted, _ = detector.paint(detector.guess(image, mask[0, 0]), mask[0])
        whole = torch.where(uncovered > 0, image, painted).double()
        torch.testing.assert_close(found, detector.judge(image.double(), whole.expand(1, 3, -1, -1, -1)))


def test_a_block_is_uncovered_when_enough_of_it_looks_normal():
    detector = ssm((64, 64))
    detector.normal_below.fill_(0.5)
    found = torch.zeros(64, 64)
    # 75 % of the first block, 81 % of the second.
    found[:4, :4] = torch.tensor([[1.0, 1, 1, 1]] + [[0.0] * 4] * 3)
    found[:4, 4:8] = torch.tensor([[1.0, 1, 1, 0]] + [[0.0] * 4] * 3)
    blocks = detector.normal_blocks(found)
    assert blocks[:4, :4].max() == 0
    assert blocks[:4, 4:8].min() == 1
    assert blocks[8:].min() == 1


def test_pixels_that_no_mask_hides_are_told_by_counting_and_not_by_their_value():
    """A black reconstruction is a reconstruction: only where nothing was hidden stands the image itself."""
    image = torch.full((1, 3, *SIZE), 0.5)
    hidden = torch.zeros(3, 2, 1, *SIZE)
    hidden[..., :24] = 1
    painted = torch.tensor([0.0, 0.2]).view(1, 1, 2, 1, 1, 1).expand(1, 3, 2, 3, *SIZE)
    hidden[:, 1, ..., :12] = 0
    whole = compose(image, painted, hidden)[0]
    assert float(whole[..., :12].abs().max()) == 0
    torch.testing.assert_close(whole[..., 12:24], torch.full((3, 3, SIZE[0], 12), 0.1))
    assert torch.equal(whole[..., 24:], image[..., 24:].expand(3, -1, -1, -1))


# --- What held-out normals say


@pytest.mark.parametrize("score", ["auto", "published"])
def test_the_threshold_is_the_quantile_of_held_out_maps_whatever_the_size(score: str):
    """The code's constant would mean another share of pixels at another size."""
    for side in (32, 64):
        detector = ssm((side, side), refine="disjoint", score=score)
        learner = detector.learner(Runtime())
        assert [phase.images for phase in learner.phases] == ["train", "held_out", "held_out"]
        held_out = textures(5, side, side, seed=3)
        run_phase(learner, "threshold", batches(held_out, 2))
        with torch.no_grad():
            maps = detector.suspicion(detector.first_errors(held_out))
        assert float(detector.normal_below) == pytest.approx(float(maps.quantile(NORMAL_QUANTILE)), rel=0.005)
        assert float((maps < detector.normal_below).float().mean()) == pytest.approx(NORMAL_QUANTILE, abs=0.03)


def test_published_scores_are_the_sum_of_two_z_scores():
    detector = ssm(score="published")
    held_out = textures(8, *SIZE, seed=3)
    run_phase(detector.learner(Runtime()), "scale", batches(held_out, 3))
    found = detector.score(held_out)
    assert float(found.image.mean()) == pytest.approx(0, abs=1e-3)
    assert 0.3 < float(found.image.std()) < 2.1
    with torch.no_grad():
        largest, squared = detector.errors(held_out)
    parts = torch.stack([largest.flatten(1).amax(1), squared.flatten(1).mean(1)], 1)
    expected = ((parts - parts.mean(0)) / parts.std(0)).sum(1)
    torch.testing.assert_close(found.image, expected.float(), rtol=1e-4, atol=1e-4)


def test_a_way_is_chosen_among_all_cell_sizes_and_each():
    detector = ssm()
    assert len(detector.ways) == 4 * (1 + 3)
    assert detector.ways["difference_top, cells 16"] == (7, 0.05)
    with torch.no_grad():
        maps = detector.errors(textures(2, *SIZE))
    assert maps.shape == (8, 2, *SIZE)
    torch.testing.assert_close(maps[:2], torch.stack([maps[2::2].mean(0), maps[3::2].mean(0)]))


def test_images_are_painted_in_together_up_to_a_number_of_pixels(monkeypatch: pytest.MonkeyPatch):
    images, detector = textures(5, *SIZE), ssm()
    together = detector.score(images)
    painted: list[int] = []
    paint = detector.paint
    monkeypatch.setattr(
        detector, "paint", lambda guesses, visible: painted.append(len(guesses)) or paint(guesses, visible)
    )
    detector.score(images)
    # Of three cell sizes, two masks each.
    assert painted == [30]
    monkeypatch.setattr("models.parts.reconstruction.AT_ONCE", 2 * 6 * images[0].numel())
    apart = detector.score(images)
    assert painted[1:] == [12, 12, 6]
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-6)


def test_where_a_threshold_decides_each_image_is_painted_in_by_itself(monkeypatch: pytest.MonkeyPatch):
    """As batches are rounded differently, what is uncovered would hang on an image's neighbours."""
    images, detector = textures(3, *SIZE), ssm(refine="disjoint")
    painted: list[int] = []
    paint = detector.paint
    monkeypatch.setattr(
        detector, "paint", lambda guesses, visible: painted.append(len(guesses)) or paint(guesses, visible)
    )
    detector.score(images)
    assert painted == [6] * 6


# --- Scores and options


def test_published_maps_are_smoothed_both_ways_and_weigh_cells_by_their_areas():
    detector = ssm((64, 64), score="published")
    assert detector.cell_weights.tolist() == pytest.approx([64 / 1344, 256 / 1344, 1024 / 1344])
    image = torch.zeros(1, 3, 64, 64)
    painted = image.repeat(1, 3, 1, 1, 1)
    painted[..., 29:36, 29:36] = 1
    found, squared = detector.judge(image, painted)[:, 0]
    assert float(squared.mean()) == pytest.approx(49 / 64**2)
    torch.testing.assert_close(found, found.T)
    assert float(found[32, 32]) > 2 * float(found[18, 32]) > 0


@pytest.mark.parametrize("across", [(8, 1), (64,)])
def test_cells_that_cannot_alternate_are_refused(across: tuple[int, ...]):
    with pytest.raises(ConfigError, match=r"from 2 to as many as it has pixels\. Got: \[\d+.*\] at 32x48\."):
        ssm(cells_across=across)


@pytest.mark.parametrize(("size", "grid"), [((64, 64), (32, 32)), ((128, 64), (48, 16)), ((40, 300), (16, 80))])
def test_any_size_has_a_grid_that_halves_four_times(size: tuple[int, int], grid: tuple[int, int]):
    detector = ssm(size, grid=32, cells_across=(4, 2))
    assert detector.size_px == grid
    assert detector.score(textures(1, *size)).heatmap.shape == (1, *size)


def test_steps_of_no_refinement_are_refused():
    with pytest.raises(ConfigError, match=r"where refine is on\. Got: refine_steps=2\. Leave it out\."):
        ssm(refine_steps=2)
    assert ssm(refine_steps=1).config.refine_steps == 1


# --- Training


@pytest.mark.parametrize("options", [{}, {"mask_blocks": True, "refine": "disjoint"}])
def test_the_loss_falls_and_a_defect_stands_out(options: dict[str, object]):
    detector = ssm((64, 64), epochs=10, lr=3e-3, **options)
    losses = run_fit(detector, batches(textures(16, 64, 64), 4), batches(textures(3, 64, 64, seed=4), 3))
    fallen = [step["loss"] for step in losses if "loss" in step]
    assert fallen[-1] < 0.7 * fallen[0]
    normal = textures(8, 64, 64, seed=1)
    assert detector.score(with_defects(normal)[0]).image.mean() > detector.score(normal).image.mean()


def test_masks_of_a_step_hang_on_seed_and_step_alone():
    """Another rank, and a restarted worker, draw the masks of the same step alike; the next step has others."""
    (batch,) = batches(textures(4, *SIZE), 4)

    def loss(seed: int, steps: int) -> float:
        learner = ssm().learner(Runtime(seed=seed))
        learner.load_state_dict(learner.state_dict() | {"steps": steps})
        learner.start("paint")
        return float(learner.step(batch)["loss"])

    first, again, next_step, other_seed = (loss(*place) for place in ((0, 5), (0, 5), (0, 6), (1, 5)))
    assert first == again
    assert first not in (next_step, other_seed)
