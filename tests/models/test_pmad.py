"""PMAD: tiles that fit together again, memories that let nothing else through, and histograms that know their background."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectorkit import batches, build, run_fit, run_phase
from hypothesis import given, settings
from hypothesis import strategies as st
from textures import textures, with_defects

from models.detector import Runtime
from models.errors import ConfigError
from models.parts import histogram_error
from models.parts.histogram import LogHistogram
from models.pmad import PMAD, PartitionMemory, PMADConfig, shrink, tile, untile

SIZE = (32, 48)
ALTERNATE = ("none", "pmb", "skip", "pmb")
SMALL = {"width": 4, "epochs": 2, "batch_size": 4, "items": 8, "warmup": 0, "modes": ALTERNATE}


def pmad(size_px: tuple[int, int] = SIZE, **options: object) -> PMAD:
    torch.manual_seed(0)
    detector = build("pmad", size_px, **(SMALL | options))
    assert isinstance(detector, PMAD)
    return detector


def memory(query: str = "channel_map", channels: int = 6, side: int = 2, **options: object) -> PartitionMemory:
    torch.manual_seed(0)
    config = PMADConfig.model_validate({"query": query, "items": 5, **options})
    return PartitionMemory(channels, (8, 12), side, config).eval()


# --- Memories


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_tiles_fit_together_again(side: int, c: int, h: int, w: int, b: int):
    maps = torch.rand(b, c, side * h, side * w)
    tiles = tile(maps, side)
    assert tiles.shape == (b, side**2, c, h * w)
    assert torch.equal(untile(tiles, side, (side * h, side * w)), maps)
    assert torch.equal(tiles[0, 0, 0], maps[0, 0, :h, :w].flatten())


@pytest.mark.parametrize(("query", "dims"), [("channel_map", 24), ("pixel", 6), ("block", 144)])
@pytest.mark.parametrize("shared", [False, True])
def test_answers_have_the_maps_shape_and_lie_in_the_span_of_the_items(query: str, dims: int, shared: bool):
    bank = memory(query, shared_memory=shared)
    assert bank.items.shape == (1 if shared else 4, 5, dims)
    maps = torch.randn(3, 6, 8, 12)
    answers = bank(maps)
    assert answers.shape == maps.shape
    tiles = tile(answers, 2).detach()
    rows = {"channel_map": tiles, "pixel": tiles.transpose(2, 3), "block": tiles.flatten(2).unsqueeze(2)}[query]
    for number in range(4):
        items = bank.items[0 if shared else number].detach().T.double()
        answer = rows[:, number].reshape(-1, dims).T.double()
        weights = torch.linalg.lstsq(items, answer, driver="gelsd").solution
        assert (items @ weights - answer).abs().max() < 1e-5
        assert float(weights.min()) > -1e-5
        torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]), atol=1e-4, rtol=0)


def test_one_item_answers_the_same_whatever_is_asked_and_not_zero():
    bank = memory(items=1)
    first, second = bank(torch.randn(1, 6, 8, 12)), bank(torch.randn(1, 6, 8, 12))
    assert torch.equal(first, second)
    assert float(first.abs().max()) > 0
    channels = tile(first, 2)[0]
    assert torch.equal(channels[:, :1].expand_as(channels), channels)


def test_a_map_reaches_the_answer_through_its_weights_alone():
    """The gradient with respect to the map is that of the weights: at a high temperature they hardly move."""
    gradients = []
    for temperature in (0.5, 1e6):
        maps = torch.randn(1, 6, 8, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        bank = memory(temperature=temperature)
        bank.shrinks = False
        bank(maps).square().sum().backward()
        assert maps.grad is not None
        gradients.append(float(maps.grad.abs().max()))
    assert gradients[1] < 1e-4 * gradients[0]


def test_shrunk_weights_are_a_share_of_each_item_above_one_nth():
    weights = torch.rand(7, 50).softmax(-1)
    found = shrink(weights)
    assert float(found.min()) >= 0
    torch.testing.assert_close(found.sum(-1), torch.ones(7))
    assert torch.equal(found > 0, weights > 1 / 50)
    kept = found > 0
    torch.testing.assert_close((found / weights)[kept][:5], (found / weights)[kept][:1].expand(5))


def test_where_no_weight_is_above_one_nth_the_largest_stands_alone():
    found = shrink(torch.full((2, 4), 0.25))
    assert found.tolist() == [[1, 0, 0, 0]] * 2
    assert shrink(torch.ones(3, 1)).tolist() == [[1], [1], [1]]


def test_the_temperature_decides_how_many_items_answer():
    torch.manual_seed(0)
    queries, items = (torch.nn.functional.normalize(torch.randn(200, 64), dim=-1) for _ in range(2))
    shares = [float((shrink((queries @ items.T / t).softmax(-1)) > 0).float().mean()) for t in (1.0, 0.1, 0.05)]
    assert shares == pytest.approx([0.48, 0.27, 0.13], abs=0.03)  # figures of the specification


def test_memories_that_are_too_large_and_tiles_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"at most max_memory parameters\. Got: 2,304 for 4 memories of 4 items"):
        memory("block", items=4, max_memory=2000)
    with pytest.raises(ConfigError, match=r"Got: 3 a side at level 1, whose map is 16x24"):
        pmad(partitions=(4, 3, 2, 2))


def test_levels_are_what_modes_say():
    assert len(pmad().memories()) == 2
    assert len(pmad(modes=("pmb", "pmb", "pmb", "pmb"), partitions=(4, 4, 2, 1)).memories()) == 4
    assert not pmad(modes=("none", "none", "none", "none")).memories()


def test_warming_up_follows_the_epochs_also_after_a_restart():
    detector = pmad(epochs=4, warmup=2)
    learner = detector.learner(Runtime())
    data = batches(textures(4, *SIZE), 4)
    learner.start("rebuild")
    seen = []
    for _ in range(4):
        seen.append(detector.memories()[0].shrinks)
        learner.step(data[0])
        learner.end_epoch()
    assert seen == [False, False, True, True]
    state = learner.state_dict()
    state["epoch"] = 1
    fresh = pmad(epochs=4, warmup=2)
    again = fresh.learner(Runtime())
    again.start("rebuild")
    again.load_state_dict(state)
    assert not fresh.memories()[0].shrinks
    again.start("range")
    assert fresh.memories()[0].shrinks


def test_a_pasted_patch_comes_back_worse_through_memories_than_through_open_skips():
    images, held_out = textures(16, 64, 64), textures(6, 64, 64, seed=4)
    normal = textures(8, 64, 64, seed=1)
    bad, masks = with_defects(normal)
    inside = {}
    for name, modes in (("memory", SMALL_MODES), ("skips", ("skip",) * 4)):
        detector = pmad((64, 64), epochs=20, lr=3e-3, modes=modes, hee=False, error="abs")
        run_fit(detector, batches(images, 4), batches(held_out, 3))
        with torch.no_grad():
            errors = detector.errors(bad)
        inside[name] = float(errors[masks].mean() / errors[~masks].mean())
    assert inside["memory"] > 1.5
    assert inside["memory"] > inside["skips"]


SMALL_MODES = ("none", "pmb", "skip", "pmb")


# --- Histograms


def noisy(seed: int = 0, level: float = 0.2) -> torch.Tensor:
    """An error map [1, 64, 64]: noise around a level, none below zero."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.abs(rng.normal(level, 0.03, (1, 64, 64)))).float()


def test_the_background_is_the_histograms_mode_and_half_width():
    found = histogram_error.background(noisy(), 1.0, 10.0)
    assert float(found.mode) == pytest.approx(0.2, abs=0.012)
    # Half the height of a normal distribution lies 1.18 standard deviations from its mode.
    assert float(found.width) == pytest.approx(1.18 * 0.03, abs=0.012)


def test_subtraction_is_monotone_and_leaves_nothing_of_a_flat_map():
    low, high = noisy(), noisy() + 0.1 * torch.rand(1, 64, 64)
    found = histogram_error.background(low, 1.0, 10.0)
    for kappa in (0.0, 1.0, 4.0):
        assert bool((histogram_error.subtract(high, found, kappa) >= histogram_error.subtract(low, found, kappa)).all())
    flat = torch.zeros(1, 64, 64)
    assert float(histogram_error.subtract(flat, histogram_error.background(flat, 1.0, 10.0), 0.0).max()) == 0


def test_an_image_offset_goes_with_the_mode():
    """What differs between images as a whole is taken off; a defect of the same height stays the same."""
    left = []
    for level in (0.15, 0.3):
        errors = noisy(level=level)
        errors[:, :8, :8] += 0.4
        left.append(
            histogram_error.subtract(errors, histogram_error.background(errors, 1.0, 10.0), 2.0)[:, :8, :8].mean()
        )
    assert float(left[0]) == pytest.approx(float(left[1]), abs=0.02)


def test_a_defect_over_most_of_the_image_does_not_delete_itself():
    errors = noisy()
    errors[:, :, :40] += 0.5  # five eighths
    free = histogram_error.background(errors, 1.0, 10.0)
    capped = histogram_error.background(errors, 1.0, 0.25)
    assert float(free.mode) > 0.6
    assert float(capped.mode) == pytest.approx(0.25)
    assert float(histogram_error.subtract(errors, capped, 0.0)[:, :, :40].mean()) > 0.4


def test_background_moves_little_when_the_errors_do():
    """Continuous: a change in the last digit moves mode and width by about as much, also across bins."""
    errors = noisy()
    before = histogram_error.background(errors, 1.0, 10.0)
    after = histogram_error.background(errors * (1 + 1e-6), 1.0, 10.0)
    assert float((before.mode - after.mode).abs()) < 1e-5
    assert float((before.width - after.width).abs()) < 1e-5


def test_constants_come_from_held_out_normals_and_add_up_over_workers():
    held_out = textures(6, *SIZE, seed=3)
    detector = pmad()
    learner = detector.learner(Runtime())
    run_phase(learner, "range", batches(held_out, 4))
    run_phase(learner, "modes", batches(held_out, 4))
    with torch.no_grad():
        errors = detector.errors(held_out)
        modes = histogram_error.background(errors, detector.error_top, 10.0).mode
    assert float(detector.error_top) == pytest.approx(float(errors.flatten().quantile(0.999)), rel=0.01)
    assert float(detector.mode_cap) == pytest.approx(float(modes.max()), rel=0.01)
    assert [phase.images for phase in learner.phases] == ["train", "held_out", "held_out"]


def test_quantiles_of_a_histogram_are_those_of_its_values():
    values = torch.from_numpy(np.random.default_rng(0).lognormal(-4, 1, 5000))
    whole, parts = LogHistogram(1e-5, 2.0), [LogHistogram(1e-5, 2.0) for _ in range(2)]
    whole.add(values)
    for part, share in zip(parts, values.split(3000), strict=True):
        part.add(share)
    parts[0].all_reduce(lambda counts: counts + parts[1].counts)
    for share in (0.5, 0.95, 0.999):
        assert whole.quantile(share) == pytest.approx(float(values.quantile(share)), rel=0.01)
        assert parts[0].quantile(share) == whole.quantile(share)


def test_image_and_map_take_off_their_own_shares():
    images = textures(3, *SIZE)
    plain, cut = (pmad(kappa_image=kappa, score="max", error="abs") for kappa in (0.0, 4.0))
    for detector in (plain, cut):
        detector.error_top.fill_(1.0)
    assert torch.equal(plain.score(images).heatmap, cut.score(images).heatmap)
    assert bool((plain.score(images).image > cut.score(images).image).all())
    torch.testing.assert_close(plain.score(images).image, plain.score(images).heatmap.flatten(1).amax(1))
