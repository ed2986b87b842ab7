"""What `fit --detector auto` tries, and what its budget allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from ad_jobs.fitting.candidates import COSTS_S, START_S, Budget, candidates, outlook
from ad_jobs.specs import FitSpec
from models import registry


def spec(tmp_path: Path, **options: object) -> FitSpec:
    return FitSpec(detector="auto", normal=str(tmp_path), out=str(tmp_path / "model"), seed=3, **options)


def test_candidates_are_whole_fits_from_the_cheapest_on(tmp_path: Path) -> None:
    found = candidates(spec(tmp_path, window="percentile"), 1000)
    assert [one.kind for one in found] == sorted(COSTS_S, key=lambda kind: COSTS_S[kind]["fast"])
    for one in found:
        assert one.spec.out == str(tmp_path / "model" / "fit" / "candidates" / one.kind)
        assert (one.spec.seed, one.spec.window, one.spec.budget) == (3, "percentile", None)
        assert not registry.entry(one.kind).needs_anomalous
        assert one.expected_s == START_S + COSTS_S[one.kind]["fast"]
    assert {one.kind: one.intent.input.height_px for one in found if one.kind in ("linear", "knn")} == {
        "linear": 64,
        "knn": 128,
    }


def test_larger_images_and_more_of_them_take_longer(tmp_path: Path) -> None:
    few, many = (candidates(spec(tmp_path, size=128), count) for count in (100, 1000))
    by_kind = {one.kind: one for one in many}
    # Four times the pixels of its preset, and as many.
    assert by_kind["linear"].expected_s == START_S + 4 * COSTS_S["linear"]["fast"]
    assert by_kind["knn"].expected_s == START_S + COSTS_S["knn"]["fast"]
    assert all(one.expected_s < by_kind[one.kind].expected_s for one in few)
    assert {one.pixels for one in many} == {128 * 128}


def test_the_budget_is_told_by_what_was_measured(tmp_path: Path) -> None:
    first, second, *_, last = candidates(spec(tmp_path), 1000)
    budget = Budget(10)
    # One is always tried.
    assert budget.allows(first)
    budget.took(first, 2 * first.expected_s)
    assert budget.left_s == 10 - 2 * first.expected_s
    assert budget.expected_s(second) == 2 * second.expected_s
    assert not budget.allows(second)
    # Another's time is gone, and says nothing of the machine.
    lossy = Budget(1000)
    lossy.lost(900)
    assert lossy.left_s == 100
    assert lossy.expected_s(second) == second.expected_s
    assert lossy.allows(second)
    enough = Budget(first.expected_s / 10 + last.expected_s / 10)
    enough.took(first, first.expected_s / 10)
    assert enough.allows(last)


def test_the_outlook_says_which_begin(tmp_path: Path) -> None:
    listed = candidates(spec(tmp_path), 1000)
    two = listed[0].expected_s + listed[1].expected_s
    assert [starts for _, starts in outlook(listed, two)] == [True, True] + [False] * (len(listed) - 2)
    assert all(starts for _, starts in outlook(listed, 1e9))


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_every_candidate_has_a_cost_for_every_preset(tmp_path: Path, preset: str) -> None:
    assert len(candidates(spec(tmp_path, preset=preset), 10)) == len(COSTS_S)
