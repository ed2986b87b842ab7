"""PMAD: tiles that fit together again, memories that let nothing else through, and constants from held-out normals."""

from __future__ import annotations

import pytest
import torch
from detectorkit import batches, build, run_fit, run_phase
from hypothesis import given, settings
from hypothesis import strategies as st
from textures import textures, with_defects

from models.errors import ConfigError
from models.parts import histogram_error
from models.parts.maps import gaussian_blur
from models.parts.reconstruction import rebuild
from models.pmad import PMAD, PartitionMemory, shrink, tile, untile
from models.runtime import Runtime

SIZE = (32, 48)
ALTERNATE = ("none", "pmb", "skip", "pmb")
SMALL = {"width": 4, "epochs": 2, "batch_size": 4, "items": 8, "warmup": 0, "modes": ALTERNATE}


WITHOUT_MEMORY = {"items": 50, "warmup": 3}


def pmad(size_px: tuple[int, int] = SIZE, **options: object) -> PMAD:
    torch.manual_seed(0)
    detector = build("pmad", size_px, **(SMALL | options))
    assert isinstance(detector, PMAD)
    return detector


def memory(items: int = 5, **options: float) -> PartitionMemory:
    """Of four tiles."""
    torch.manual_seed(0)
    return PartitionMemory((8, 12), 2, items, **options).eval()


# --- Memories


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_tiles_fit_together_again(side: int, c: int, h: int, w: int, b: int):
    maps = torch.rand(b, c, side * h, side * w)
    tiles = tile(maps, side)
    assert tiles.shape == (b, side**2, c, h * w)
    assert torch.equal(untile(tiles, side, (side * h, side * w)), maps)
    assert torch.equal(tiles[0, 0, 0], maps[0, 0, :h, :w].flatten())


def test_answers_have_the_maps_shape_and_lie_in_the_span_of_the_items():
    bank = memory()
    assert bank.items.shape == (4, 5, 24)
    maps = torch.randn(3, 6, 8, 12)
    answers = bank(maps)
    assert answers.shape == maps.shape
    tiles = tile(answers, 2).detach()
    for number in range(4):
        items = bank.items[number].detach().T.double()
        answer = tiles[:, number].reshape(-1, 24).T.double()
        weights = torch.linalg.lstsq(items, answer, driver="gelsd").solution
        assert (items @ weights - answer).abs().max() < 1e-5
        assert float(weights.min()) > -1e-5
        torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]), atol=1e-4, rtol=0)


def test_one_item_answers_the_same_whatever_is_asked_and_not_zero():
    bank = memory(items=1)
    first, second = bank(torch.randn(1, 6, 8, 12)), bank(torch.randn(1, 6, 8, 12))
    assert torch.equal(first, second)
    assert float(first.detach().abs().max()) > 0
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
    # What random directions give.
    assert shares == pytest.approx([0.48, 0.27, 0.13], abs=0.03)


def test_memories_that_are_too_large_and_tiles_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"at most 50,000,000 parameters\. Got: 209,715,200 for 16 memories of 200"):
        PartitionMemory((1024, 1024), 4, 200)
    with pytest.raises(ConfigError, match=r"Got: 3 a side at level 1, whose map is 16x24"):
        pmad(partitions=(4, 3, 2, 2))


def test_levels_are_what_modes_say():
    assert len(pmad().memories()) == 2
    assert len(pmad(modes=("pmb", "pmb", "pmb", "pmb"), partitions=(4, 4, 2, 1)).memories()) == 4
    assert not pmad(modes=("none", "skip", "none", "none"), **WITHOUT_MEMORY).memories()


@pytest.mark.parametrize("option", [{"items": 8}, {"warmup": 0}, {"partitions": (2, 2, 2, 2)}])
def test_options_of_memories_are_refused_where_there_are_none(option: dict[str, object]):
    with pytest.raises(ConfigError, match=r"counts where modes name a memory\. Got: .*\. Leave it at"):
        pmad(modes=("none", "skip", "none", "none"), **(WITHOUT_MEMORY | option))


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
    for name, options in (("memory", {"modes": ALTERNATE}), ("skips", {"modes": ("skip",) * 4, **WITHOUT_MEMORY})):
        detector = pmad((64, 64), epochs=20, lr=3e-3, hee=False, **options)
        run_fit(detector, batches(images, 4), batches(held_out, 3))
        with torch.no_grad():
            errors = (rebuild(detector.network, bad) - bad).abs().mean(1)
        inside[name] = float(errors[masks].mean() / errors[~masks].mean())
    assert inside["memory"] > 1.5
    assert inside["memory"] > inside["skips"]


# --- Histograms


def test_constants_come_from_held_out_normals_and_add_up_over_workers():
    held_out = textures(6, *SIZE, seed=3)
    detector = pmad()
    learner = detector.learner(Runtime())
    run_phase(learner, "range", batches(held_out, 4))
    run_phase(learner, "modes", batches(held_out, 4))
    with torch.no_grad():
        errors = detector.errors(held_out)
        modes = histogram_error.mode(errors, detector.error_top, 10.0)
    assert float(detector.error_top) == pytest.approx(float(errors.flatten().quantile(0.999)), rel=0.01)
    assert float(detector.mode_cap) == pytest.approx(float(modes.max()), rel=0.01)
    assert [phase.images for phase in learner.phases] == ["train", "held_out", "held_out"]


def test_the_heatmap_is_what_lies_above_the_histograms_mode_smoothed_and_the_error_itself_without_it():
    images = textures(3, *SIZE)
    for hee in (True, False):
        detector = pmad(hee=hee)
        detector.mode_cap.fill_(0.1)
        with torch.no_grad():
            errors = detector.errors(images)
        assert float(histogram_error.mode(errors, 1.0, 0.1).min()) > 0
        left = (errors - histogram_error.mode(errors, 1.0, 0.1).view(-1, 1, 1)).clamp_min(0) if hee else errors
        expected = gaussian_blur(left, 0.5)
        torch.testing.assert_close(detector.score(images).heatmap, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("score", "reduce"), [("mean", torch.mean), ("max", torch.amax)])
def test_scores_follow_the_option(score: str, reduce):
    found = pmad(score=score).score(textures(3, *SIZE))
    torch.testing.assert_close(found.image, reduce(found.heatmap.flatten(1), 1))
