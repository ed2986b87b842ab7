"""SSM: masks that tile, refinement that only uncovers, thresholds that do not hang on size, and what a network must not see."""

from __future__ import annotations

import pytest
import torch
from detectorkit import batches, build, run_fit, run_phase
from textures import textures, with_defects

from models.detector import Runtime
from models.errors import ConfigError
from models.ssm import SSM, checkerboard_masks, code_threshold, disjoint_masks

SIZE = (32, 48)
SMALL = {"width": 4, "epochs": 2, "batch_size": 4, "refine": "disjoint"}


def ssm(size_px: tuple[int, int] = SIZE, **options: object) -> SSM:
    torch.manual_seed(0)
    detector = build("ssm", size_px, **(SMALL | options))
    assert isinstance(detector, SSM)
    return detector


# --- Masks


@pytest.mark.parametrize("cell", [2, 4, 8, 5])
def test_hidden_cells_of_disjoint_masks_tile_the_image_once(cell: int):
    masks = disjoint_masks(cell, 3, SIZE, torch.Generator().manual_seed(1))
    assert masks.shape == (3, 1, *SIZE)
    assert torch.equal((1 - masks).sum(0), torch.ones(1, *SIZE))
    assert float((1 - masks).mean()) == pytest.approx(1 / 3, abs=0.01)
    cells = masks[:, 0, : SIZE[0] // cell * cell, : SIZE[1] // cell * cell]
    cells = cells.unflatten(1, (-1, cell)).unflatten(3, (-1, cell))
    assert torch.equal(cells.amin((2, 4)), cells.amax((2, 4))), "a cell is hidden as a whole"


def test_a_checkerboard_and_its_complement_hide_everything_once():
    masks = checkerboard_masks(4, SIZE)
    assert torch.equal(masks.sum(0), torch.ones(1, *SIZE))
    assert masks[0, 0, 0, 0] != masks[0, 0, 0, 4] != masks[0, 0, 4, 4]


def test_masks_follow_their_seed_and_torchs_own_generator_stays_where_it_is():
    before = torch.get_rng_state()
    first, again, other = (ssm(masks="disjoint", mask_seed=seed).score(textures(2, *SIZE)).image for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.set_rng_state(before)
    ssm_detector = ssm(masks="disjoint")
    state = torch.get_rng_state()
    ssm_detector.score(textures(1, *SIZE))
    assert torch.equal(state, torch.get_rng_state())


def test_hidden_pixels_do_not_reach_the_network():
    detector = ssm()
    visible = checkerboard_masks(8, SIZE)[:1]
    image = textures(1, *SIZE)
    other = torch.where(visible > 0, image, 1 - image)
    with torch.no_grad():
        for one, two in zip(detector.paint(image, visible), detector.paint(other, visible), strict=True):
            assert torch.equal(one, two)
        changed = detector.paint(torch.where(visible > 0, 1 - image, image), visible)[0]
        assert not torch.equal(changed, detector.paint(image, visible)[0])


# --- Refinement


def test_nothing_uncovered_is_the_first_pass_to_the_bit():
    detector = ssm(refine="disjoint")
    image = textures(1, *SIZE)
    detector.normal_below.fill_(0.0)  # nothing looks normal
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


def test_the_visible_area_never_shrinks_and_refinement_stops_at_the_configured_pass(monkeypatch: pytest.MonkeyPatch):
    """What one pass found normal stays visible, also where the next does not find it so."""
    for steps in (1, 2, 3):
        detector = ssm(refine_steps=steps)
        found = iter(torch.eye(4)[:, :, None].expand(4, 4, SIZE[0] * SIZE[1] // 4).reshape(4, *SIZE))
        monkeypatch.setattr(detector, "_normal_blocks", lambda _, found=found: next(found))
        with torch.no_grad():
            assert float(detector.refined(textures(1, *SIZE))[2]) == pytest.approx(steps / 4)


def test_a_block_is_uncovered_when_enough_of_it_looks_normal():
    detector = ssm((64, 64), refine_ratio=0.8)
    detector.normal_below.fill_(0.5)
    found = torch.zeros(64, 64)
    found[:4, :4] = torch.tensor([[1.0, 1, 1, 1]] + [[0.0] * 4] * 3)  # 75 % of the first block
    found[:4, 4:8] = torch.tensor([[1.0, 1, 1, 0]] + [[0.0] * 4] * 3)  # 81 % of the second
    blocks = detector._normal_blocks(found)
    assert blocks[:4, :4].max() == 0
    assert blocks[:4, 4:8].min() == 1
    assert blocks[8:].min() == 1


def test_pixels_that_no_mask_hides_are_told_by_counting_and_not_by_their_value():
    """A black reconstruction is a reconstruction: only where nothing was hidden stands the image itself."""
    detector = ssm((64, 64), color_weight=1.0, smoothing=0.0)
    image = torch.full((1, 3, 64, 64), 0.5)
    hidden = torch.zeros(3, 1, 1, 64, 64)
    hidden[..., :32] = 1
    found, error = detector._compose(image, torch.zeros(3, 1, 3, 64, 64), hidden)
    assert float(error) == pytest.approx(0.5 * 0.25)
    assert float(found[:, 48:].max()) == pytest.approx(0.0, abs=1e-3)
    assert float(found[:, :16].min()) == pytest.approx(0.5, abs=0.05)


# --- Thresholds


def test_the_codes_threshold_by_its_closed_form():
    assert code_threshold(128, (2, 4, 8)) == pytest.approx(0.0157, abs=5e-5)
    assert code_threshold(256, (2, 4, 8, 16)) == pytest.approx(0.0243, abs=5e-5)
    assert code_threshold(96, (2, 4, 8)) == pytest.approx(0.337, abs=5e-4)
    assert code_threshold(256, (2, 4, 8)) < 0  # nothing would ever be uncovered
    assert code_threshold(64, (2, 4)) < 0


def test_the_threshold_is_the_quantile_of_held_out_maps_and_nothing_of_training_images():
    detector = ssm(refine_quantile=0.9)
    learner = detector.learner(Runtime())
    held_out = textures(5, *SIZE, seed=3)
    run_phase(learner, "threshold", batches(held_out, 2))
    with torch.no_grad():
        maps = torch.stack([detector.examine(image.unsqueeze(0), torch.zeros(SIZE))[0] for image in held_out])
    assert float(detector.normal_below) == pytest.approx(float(maps.quantile(0.9)), rel=0.005)
    assert [phase.images for phase in learner.phases] == ["train", "held_out", "held_out"]


def test_two_workers_find_the_threshold_and_the_scale_of_one():
    held_out = textures(6, *SIZE, seed=3)
    whole = ssm()
    learner = whole.learner(Runtime())
    for phase in ("threshold", "scale"):
        run_phase(learner, phase, batches(held_out, 3))
    both = ssm()
    for phase in ("threshold", "scale"):
        parts = [both.learner(Runtime()) for _ in range(2)]
        for part, share in zip(parts, (held_out[:2], held_out[2:]), strict=True):
            part.start(phase)
            part.step(batches(share, 6)[0])
        totals = {"threshold": sum(p._histogram.counts for p in parts), "scale": sum(p._sums for p in parts)}
        last = both.learner(Runtime(all_reduce_sum=lambda _, total=totals[phase]: total, world=2))
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


def test_a_threshold_of_maps_means_the_same_at_two_sizes():
    """The quantile's share of pixels lies below the threshold whatever the size; the code's constant would not."""
    for side in (32, 64):
        detector = ssm((side, side), refine_quantile=0.8)
        held_out = textures(4, side, side, seed=3)
        run_phase(detector.learner(Runtime()), "threshold", batches(held_out, 4))
        with torch.no_grad():
            maps = torch.stack([detector.examine(x.unsqueeze(0), torch.zeros(side, side))[0] for x in held_out])
        assert float((maps < detector.normal_below).float().mean()) == pytest.approx(0.8, abs=0.01)


# --- Scores


def test_smoothing_spreads_both_ways_and_the_codes_own_along_rows_alone():
    image = torch.zeros(1, 3, 64, 64)
    painted = image.repeat(3, 1, 1, 1)
    painted[:, :, 32, 32] = 1
    wide = ssm((64, 64), color_weight=1.0).difference(image, painted)
    rows = ssm((64, 64), color_weight=1.0, legacy_1d=True).difference(image, painted)
    assert float(wide[26, 32]) > 0.2 * float(wide[32, 26]) > 0
    assert float(rows[22, 32]) < 1e-3 * float(rows[32, 32])
    assert float(rows[32, 22]) > 1e-3 * float(rows[32, 32])


def test_a_change_of_colour_alone_is_seen_by_the_colour_term():
    image = torch.full((1, 3, 64, 64), 0.4)
    painted = (image + 0.2).repeat(3, 1, 1, 1)
    assert float(ssm((64, 64), color_weight=0.0).difference(image, painted).max()) < 1e-3
    assert float(ssm((64, 64), color_weight=1.0).difference(image, painted).min()) == pytest.approx(0.2, abs=1e-3)


def test_weights_of_cell_sizes_are_their_areas_or_equal():
    assert ssm().cell_weights.tolist() == pytest.approx([4 / 84, 16 / 84, 64 / 84])
    assert ssm(cell_weights="uniform").cell_weights.tolist() == pytest.approx([1 / 3] * 3)


def test_cells_larger_than_half_the_image_are_refused():
    with pytest.raises(ConfigError, match=r"at most half the image's\. Got: \[2, 32\] at 32x48\."):
        ssm(cells=(2, 32))


# --- Training


@pytest.mark.parametrize("options", [{}, {"model": "autoencoder"}, {"mask_blocks": True}])
def test_the_loss_falls_and_a_defect_stands_out(options: dict[str, object]):
    detector = ssm((64, 64), epochs=14, lr=3e-3, **options)
    losses = run_fit(detector, batches(textures(16, 64, 64), 4), batches(textures(6, 64, 64, seed=4), 3))
    fallen = [step["loss"] for step in losses if "loss" in step]
    assert fallen[-1] < 0.5 * fallen[0]
    normal = textures(8, 64, 64, seed=1)
    assert detector.score(with_defects(normal)[0]).image.mean() > detector.score(normal).image.mean()


def test_masks_of_a_step_hang_on_seed_and_step_alone():
    """Another rank, and a restarted worker, draw the masks of the same step alike; the next step has others."""
    detector = ssm()
    drawn = []
    for seed, steps in ((0, 5), (0, 5), (0, 6), (1, 5)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + steps)
        drawn.append(detector.learner(Runtime(seed=seed))._masks(generator))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])


def test_variety_shows_more_of_the_image_in_some_steps():
    learner = ssm().learner(Runtime())
    shown = [float(learner._masks(torch.Generator().manual_seed(n)).mean()) for n in range(40)]
    plain = [share for share in shown if share == pytest.approx(2 / 3, abs=0.01)]
    assert 8 < len(plain) < 32
    assert max(shown) > 0.85
