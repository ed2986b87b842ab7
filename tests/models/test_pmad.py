"""PMAD: memories that let nothing else through and refuse what is far from them, and constants of held-out normals."""

from __future__ import annotations

import pytest
import torch
from detectorkit import batches, build, run_fit, run_phase
from textures import textures, with_defects
from torch import Tensor

from models.errors import ConfigError
from models.parts import histogram_error
from models.parts.error_score import WAYS
from models.parts.maps import gaussian_blur
from models.pmad import ALL_WAYS, PMAD, PartitionMemory
from models.runtime import Runtime

SIZE = (32, 48)
SMALL = {"epochs": 2, "batch_size": 4, "grid": 16, "latent": 12, "partitions": 3, "items": 3}


def pmad(size_px: tuple[int, int] = SIZE, **options: object) -> PMAD:
    torch.manual_seed(0)
    detector = build("pmad", size_px, **(SMALL | options))
    assert isinstance(detector, PMAD)
    return detector


def memory(partitions: int = 4, items: int = 5, dims: int = 24) -> PartitionMemory:
    torch.manual_seed(0)
    return PartitionMemory(partitions, items, dims).double()


def queries(count: int = 7, partitions: int = 4, dims: int = 24) -> Tensor:
    return torch.randn(count, partitions, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# --- Memories


def test_an_answer_is_a_mixture_of_the_items_of_its_own_part():
    bank = memory()
    answers = bank(queries()).detach()
    assert answers.shape == (7, 4, 24)
    for part in range(4):
        items = bank.items[part].detach().T
        mixture = torch.linalg.lstsq(items, answers[:, part].T).solution
        torch.testing.assert_close(items @ mixture, answers[:, part].T)
        torch.testing.assert_close(mixture.sum(0), torch.ones(7, dtype=torch.float64))
        assert float(mixture.min()) > 0


def test_the_part_of_one_query_changes_the_answer_of_that_part_alone():
    bank, one = memory(), queries()
    other = one.clone()
    other[:, 2] = -other[:, 2]
    same = (bank(one) == bank(other)).all(2).all(0)
    assert same.tolist() == [True, True, False, True]


def test_a_query_that_is_an_item_gets_it_and_what_is_unlike_all_gets_their_mean():
    bank = memory(dims=240)
    items_TND = bank.items.detach()
    torch.testing.assert_close(bank(items_TND[:, 2].unsqueeze(0))[0].detach(), items_TND[:, 2], atol=0.1, rtol=0)
    # At a right angle to all of a part's items.
    outside_TD = queries(1, dims=240)[0]
    basis_TDN = torch.linalg.qr(items_TND.mT).Q
    outside_TD = outside_TD - (basis_TDN @ (basis_TDN.mT @ outside_TD.unsqueeze(2))).squeeze(2)
    answer_TD = bank(outside_TD.unsqueeze(0))[0].detach()
    torch.testing.assert_close(answer_TD, items_TND.mean(1))
    assert torch.nn.functional.cosine_similarity(outside_TD, answer_TD, dim=-1).abs().max() < 1e-9


def test_what_the_weights_do_not_say_does_not_reach_the_decoder(monkeypatch: pytest.MonkeyPatch):
    network = pmad().network
    images = textures(2, *pmad().grid).double()
    rebuilt = network(images).images
    assert not torch.equal(rebuilt[0], rebuilt[1])
    assert network.memory is not None
    kept = network.memory.weights(network.queries(images[:1]))
    monkeypatch.setattr(network.memory, "weights", lambda queries_BTD: kept.expand(len(queries_BTD), -1, -1))
    for anything in (images, torch.rand_like(images), torch.zeros_like(images)):
        for found in network(anything).images:
            torch.testing.assert_close(found, rebuilt[0])


def test_a_pasted_square_comes_back_worse_through_memories_than_without():
    normal = textures(16, 32, 32, seed=1)
    bad, masks = with_defects(normal)
    inside = {}
    options = {"grid": 32, "epochs": 60, "batch_size": 16, "lr": 5e-3, "latent": 64}
    for name, of in (("memory", {"partitions": 2, "items": 16}), ("none", {"memory": False})):
        torch.manual_seed(0)
        detector = build("pmad", (32, 32), **options, **of)
        assert isinstance(detector, PMAD)
        run_fit(detector, batches(textures(96, 32, 32), 16), batches(textures(8, 32, 32, seed=4), 8))
        with torch.no_grad():
            _, errors = detector.raw_errors(bad)
            inside[name] = float(errors[masks].mean() / errors[~masks].mean())
    assert inside["memory"] > 1.5
    assert inside["memory"] > inside["none"]


def test_queries_are_drawn_to_their_answers():
    detector = pmad(epochs=40, lr=5e-3)
    detector.network.spread.fill_(0.5)
    steps = run_phase(detector.learner(Runtime()), "rebuild", batches(textures(8, *SIZE), 4))
    assert steps[-1]["distance"] < 0.5 * steps[0]["distance"]
    assert steps[0]["loss"] == pytest.approx(4 * steps[0]["mse"] + 0.01 * steps[0]["distance"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 4}, r"as many items as its queries have dimensions.*Got: items=4, and 4 dimensions"),
        ({"partitions": 5}, r"cut into equal parts\. Got: partitions=5 of latent=12"),
        ({"memory": False}, r"partitions counts where memory is on\. Got: partitions=3\. Leave it out"),
    ],
)
def test_memories_that_could_not_refuse_are_refused(options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        pmad(**options)


def test_without_memories_all_passes():
    detector = build("pmad", SIZE, grid=16, memory=False)
    assert isinstance(detector, PMAD)
    network = detector.network
    assert network.memory is None
    with torch.no_grad():
        assert float(network(textures(2, *detector.grid).double()).distance.abs().max()) < 1e-9


# --- Histograms and scores


def test_the_centre_is_the_mean_of_normal_grids_and_the_spread_two_deviations_around_it():
    images = textures(9, *SIZE)
    detector = pmad()
    run_phase(detector.learner(Runtime()), "centre", batches(images, 4))
    grid = detector.on_grid(images).flatten(1)
    torch.testing.assert_close(detector.network.centre, grid.mean(0).float())
    assert float(detector.network.spread) == pytest.approx(2 * float((grid - grid.mean(0)).square().mean().sqrt()))
    run_phase(detector.learner(Runtime()), "centre", batches(images[:1], 4))
    assert float(detector.network.spread) == 1


def test_the_rate_falls_to_nothing_by_a_cosine():
    learner = pmad(epochs=4, lr=1.0).learner(Runtime())
    learner.start("rebuild")
    rates = []
    for _ in range(5):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        learner.end_epoch()
    assert rates == pytest.approx([1, 0.854, 0.5, 0.146, 0], abs=1e-3)


def test_constants_come_from_held_out_normals():
    held_out = textures(6, *SIZE, seed=3)
    detector = pmad()
    learner = detector.learner(Runtime())
    assert [(phase.name, phase.images) for phase in learner.phases] == [
        ("centre", "train"),
        ("rebuild", "train"),
        *((name, "held_out") for name in ("range", "modes", "choose")),
    ]
    run_phase(learner, "range", batches(held_out, 4))
    run_phase(learner, "modes", batches(held_out, 4))
    with torch.no_grad():
        errors = detector.raw_errors(held_out)
    for of in range(2):
        top, modes = detector.error_top[of], histogram_error.mode(errors[of], detector.error_top[of], 10.0)
        assert float(top) == pytest.approx(float(errors[of].flatten().quantile(0.999)), rel=0.02)
        assert float(detector.mode_cap[of]) == pytest.approx(float(modes.max()), rel=0.01)


def test_errors_are_gradients_and_values_and_both_without_what_their_histograms_say_is_background():
    detector = pmad()
    detector.mode_cap.fill_(0.05)
    images = textures(3, *SIZE)
    with torch.no_grad():
        found = detector.errors(images)
        raw = detector.raw_errors(images)
    assert found.shape == (4, 3, *detector.grid)
    assert torch.equal(found[:2], raw)
    torch.testing.assert_close(found[2:], (raw - 0.05).clamp_min(0))


@pytest.mark.parametrize("way", list(ALL_WAYS))
def test_the_score_is_the_one_asked_for_in_spreads_of_held_out_normals(way: str):
    detector = pmad(score=way)
    held_out = textures(8, *SIZE, seed=3)
    run_fit(detector, batches(textures(8, *SIZE), 4), batches(held_out, 4))
    found = detector.score(held_out)
    assert float(found.image.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.image.std()) == pytest.approx(1, abs=1e-4)
    of, _ = ALL_WAYS[way]
    with torch.no_grad():
        errors = detector.errors(held_out)[of]
    expected = gaussian_blur(errors, 0.5).float()
    assert found.heatmap.shape == (8, *SIZE)
    assert float(torch.corrcoef(torch.stack([found.heatmap.mean((1, 2)), expected.mean((1, 2))]))[0, 1]) > 0.99


def test_subtracted_modes_are_ways_beside_the_others():
    assert {name.removesuffix("_hee") for name in ALL_WAYS} == set(WAYS)
    assert all(ALL_WAYS[f"{name}_hee"] == (of + 2, share) for name, (of, share) in WAYS.items())


def test_the_grid_has_as_many_pixels_whatever_the_inputs_shape():
    assert pmad((64, 64), grid=32).grid == (32, 32)
    height, width = pmad((32, 128), grid=32).grid
    assert (height, width) == (16, 64)
