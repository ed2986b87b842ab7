"""SSM: refinement that only uncovers, a threshold from held-out normals, and what a network must not see."""

from __future__ import annotations

import pytest
import torch
from detectorkit import batches, build, run_fit, run_phase
from textures import textures, with_defects

from models.errors import ConfigError
from models.parts.masks import checkerboard_masks
from models.runtime import Runtime
from models.ssm import NORMAL_QUANTILE, SSM, compose

SIZE = (32, 48)
SMALL = {"width": 4, "epochs": 2, "batch_size": 4, "refine": "disjoint"}


def ssm(size_px: tuple[int, int] = SIZE, **options: object) -> SSM:
    torch.manual_seed(0)
    detector = build("ssm", size_px, **(SMALL | options))
    assert isinstance(detector, SSM)
    return detector


def test_hidden_pixels_do_not_reach_the_network():
    detector = ssm()
    visible = checkerboard_masks(8, SIZE)[:1]
    image = textures(1, *SIZE)
    hidden_changed = torch.where(visible > 0, image, 1 - image)
    with torch.no_grad():
        painted = detector.paint(image, visible)
        assert torch.equal(painted, detector.paint(hidden_changed, visible))
        assert not torch.equal(painted, detector.paint(1 - hidden_changed, visible))


# --- Refinement


def test_nothing_uncovered_is_the_first_pass_to_the_bit():
    detector = ssm(refine="disjoint")
    image = textures(1, *SIZE)
    # Nothing looks normal.
    detector.normal_below.fill_(0.0)
    with torch.no_grad():
        found, error, share = detector.refined(image)
        first, first_error = detector.examine(image, torch.zeros(SIZE))
    assert torch.equal(found, first)
    assert torch.equal(error, first_error)
    assert float(share) == 0


@pytest.mark.parametrize("refine", ["disjoint", "joint"])
def test_everything_uncovered_is_a_map_of_zeros(refine: str):
    detector = ssm(refine=refine)
    detector.normal_below.fill_(10.0)
    with torch.no_grad():
        found, error, share = detector.refined(textures(1, *SIZE))
    assert float(share) == 1
    assert float(found.abs().max()) < 1e-6
    assert float(error) == 0


@pytest.mark.parametrize("refine", ["disjoint", "joint"])
def test_the_visible_area_never_shrinks_and_refinement_stops_at_the_configured_pass(refine: str):
    """What one pass found normal stays visible, also where the next does not find it so."""
    image = textures(1, 64, 64)
    detector = ssm((64, 64))
    with torch.no_grad():
        first, _ = detector.examine(image, torch.zeros(64, 64))
    below = first.quantile(0.6)
    detector.normal_below.fill_(below)
    shares, maps = [0.0], []
    for steps in (1, 2, 3):
        again = ssm((64, 64), refine=refine, refine_steps=steps)
        again.normal_below.fill_(below)
        with torch.no_grad():
            found, _, share = again.refined(image)
        shares.append(float(share))
        maps.append(found)
    assert 0 < shares[1] <= shares[2] <= shares[3] < 1
    uncovered = torch.zeros(64, 64)
    for before, share in zip([first, *maps], shares[1:], strict=False):
        uncovered = torch.maximum(uncovered, detector.normal_blocks(before))
        assert share == pytest.approx(float(uncovered.mean()))


def test_one_mask_hides_all_that_is_suspect_unless_that_is_too_much():
    image = textures(1, *SIZE)
    some = torch.zeros(SIZE)
    some[:, :36] = 1
    with torch.no_grad():
        detector = ssm(refine="joint")
        whole, _ = detector.examine_jointly(image, some)
        visible = some.expand(1, 1, *SIZE)
        painted = torch.where(visible > 0, image, detector.paint(image, visible))
        torch.testing.assert_close(whole, detector.judge(image, painted.expand(3, -1, -1, -1))[0])
        # Of nothing uncovered, both ways are the first pass.
        detector.normal_below.fill_(0.0)
        assert torch.equal(detector.refined(image)[0], detector.examine(image, torch.zeros(SIZE))[0])


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
    painted = torch.tensor([0.0, 0.2]).view(1, 2, 1, 1, 1).expand(3, 2, 3, *SIZE)
    hidden[:, 1, ..., :12] = 0
    whole = compose(image, painted, hidden)
    assert float(whole[..., :12].abs().max()) == 0
    torch.testing.assert_close(whole[..., 12:24], torch.full((3, 3, SIZE[0], 12), 0.1))
    assert torch.equal(whole[..., 24:], image[..., 24:].expand(3, -1, -1, -1))


# --- What held-out normals say


def test_the_threshold_is_the_quantile_of_held_out_maps_whatever_the_size():
    """The code's constant would mean another share of pixels at another size."""
    for side in (32, 64):
        detector = ssm((side, side))
        learner = detector.learner(Runtime())
        assert [phase.images for phase in learner.phases] == ["train", "held_out", "held_out"]
        held_out = textures(5, side, side, seed=3)
        run_phase(learner, "threshold", batches(held_out, 2))
        with torch.no_grad():
            maps = torch.stack([detector.examine(x.unsqueeze(0), torch.zeros(side, side))[0] for x in held_out])
        assert float(detector.normal_below) == pytest.approx(float(maps.quantile(NORMAL_QUANTILE)), rel=0.005)
        assert float((maps < detector.normal_below).float().mean()) == pytest.approx(NORMAL_QUANTILE, abs=0.01)


def test_two_workers_find_the_threshold_and_the_scale_of_one():
    held_out = textures(6, *SIZE, seed=3)
    whole, both = ssm(), ssm()
    learner = whole.learner(Runtime())
    for phase, key in (("threshold", "histogram"), ("scale", "sums")):
        run_phase(learner, phase, batches(held_out, 3))
        parts = [both.learner(Runtime()) for _ in range(2)]
        for part, share in zip(parts, (held_out[:2], held_out[2:]), strict=True):
            part.start(phase)
            part.step(batches(share, 6)[0])
        total = sum(part.state_dict()[key] for part in parts)
        last = both.learner(Runtime(all_reduce_sum=lambda _, total=total: total, world=2))
        last.start(phase)
        last.end_epoch()
        last.finish(phase)
    for name in ("normal_below", "score_mean", "score_spread", "uncovered_share"):
        torch.testing.assert_close(getattr(both, name), getattr(whole, name), rtol=1e-5, atol=1e-7)


def test_scores_of_held_out_normals_have_mean_zero_and_their_parts_spread_one():
    detector = ssm(refine="none", score="max+mse")
    held_out = textures(8, *SIZE, seed=3)
    run_phase(detector.learner(Runtime()), "scale", batches(held_out, 3))
    scores = detector.score(held_out).image
    assert float(scores.mean()) == pytest.approx(0, abs=1e-3)
    assert 0.3 < float(scores.std()) < 2.1


# --- Scores


def test_smoothing_spreads_both_ways():
    image = torch.zeros(1, 3, 64, 64)
    painted = image.repeat(3, 1, 1, 1)
    painted[:, :, 29:36, 29:36] = 1
    found, error = ssm((64, 64)).judge(image, painted)
    assert float(error) == pytest.approx(49 / 64**2)
    torch.testing.assert_close(found, found.T)
    assert float(found[32, 32]) > 2 * float(found[18, 32]) > 0


def test_cell_sizes_weigh_by_their_areas():
    assert ssm().cell_weights.tolist() == pytest.approx([4 / 84, 16 / 84, 64 / 84])


def test_cells_larger_than_half_the_image_are_refused():
    with pytest.raises(ConfigError, match=r"at most half the image's\. Got: \[2, 32\] at 32x48\."):
        ssm(cells=(2, 32))


def test_steps_of_no_refinement_are_refused():
    with pytest.raises(ConfigError, match=r"where refine is on\. Got: refine_steps=2\. Leave it at 1\."):
        ssm(refine="none", refine_steps=2)
    assert ssm(refine="none", refine_steps=1).config.refine_steps == 1


# --- Training


@pytest.mark.parametrize("options", [{}, {"mask_blocks": True}])
def test_the_loss_falls_and_a_defect_stands_out(options: dict[str, object]):
    detector = ssm((64, 64), epochs=14, lr=3e-3, **options)
    losses = run_fit(detector, batches(textures(16, 64, 64), 4), batches(textures(6, 64, 64, seed=4), 3))
    fallen = [step["loss"] for step in losses if "loss" in step]
    assert fallen[-1] < 0.5 * fallen[0]
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
