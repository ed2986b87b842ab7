"""A fit on several workers is the fit on one: every detector at the same global batches on 1, 2 and 3 processes.

In float64, where the two differ by rounding of 1e-16 and what training makes of it.
In float32 such networks are chaotic: within twenty steps a mere change of the order of a batch's images moves a loss by
as much as another number of workers.
"""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from cases import CASES
from workerkit import Job, Outcome, Workers, fit

from models.detector import TrainedConfig
from models.errors import NonFiniteLoss
from models.registry import DETECTORS

RTOL = 1e-5  # of losses, scores, weights and statistics; the largest seen are 5e-7, 1e-6 and 2e-5
ATOL = 1e-8  # a bias before a norm has no gradient but rounding
FIRST_RTOL = 1e-4  # float32, one step

WORK = {name: (case.kind, case.work) for name, case in CASES.items() if case.work is not None}
JOBS = {name: Job(kind, work.options, work.size_px, images=work.images) for name, (kind, work) in WORK.items()}
# Where to stop: a phase, and how many of its epochs are done.
MAIN = {name: (work.stop_in, work.stop_after) for name, (_, work) in WORK.items() if work.stop_in is not None}
# What reports losses.
TRAINED = [name for name, job in JOBS.items() if issubclass(DETECTORS[job.kind].config_class(), TrainedConfig)]

_kept: dict[str, Any] = {}


def alone(three: Workers, name: str) -> Outcome:
    """The job on one process."""
    if name not in _kept:
        (_kept[name],) = three.run(1, fit, JOBS[name])
    return sound(_kept[name])


def sound(outcome: Any) -> Outcome:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Losses of the steps both have, weights, statistics and scores."""
    steps = len(found.losses)
    for number, (ours, theirs) in enumerate(
        zip(found.losses, expected.losses[len(expected.losses) - steps :], strict=True)
    ):
        assert ours == pytest.approx(theirs, rel=RTOL, abs=ATOL), f"step {number} of {steps}"
    for name, tensor in expected.weights.items():
        if tensor.numel():
            gap = float((found.weights[name].double() - tensor.double()).abs().max())
            assert gap <= RTOL * float(tensor.double().abs().max()) + ATOL, f"{name} differs by {gap:.1e}"
    torch.testing.assert_close(found.scores, expected.scores, rtol=RTOL, atol=ATOL)


def assert_equal_ranks(ranks: list[Outcome]) -> None:
    """Weights to the bit, and a state that is the same whichever rank saves it."""
    for other in ranks[1:]:
        assert all(torch.equal(tensor, other.weights[name]) for name, tensor in ranks[0].weights.items())
        assert_equal_state(_opened(other.state), _opened(ranks[0].state))
        assert other.losses == ranks[0].losses


def _opened(state: bytes) -> Any:
    return torch.load(io.BytesIO(state), weights_only=True)


def assert_equal_state(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_equal_state(value, other[key])
    elif isinstance(one, list | tuple):
        for first, second in zip(one, other, strict=True):
            assert_equal_state(first, second)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_every_registered_detector_is_here():
    assert {job.kind for job in JOBS.values()} == set(DETECTORS) == {JOBS[name].kind for name in MAIN}


@pytest.mark.parametrize(("name", "world"), [*((name, 3) for name in JOBS), *((name, 2) for name in MAIN)])
def test_the_model_is_that_of_one_worker(three: Workers, name: str, world: int):
    expected = alone(three, name)
    assert name not in TRAINED or sum("loss" in step for step in expected.losses) >= 20
    ranks = [sound(outcome) for outcome in three.run(world, fit, JOBS[name])]
    assert_same(ranks[0], expected)
    assert_equal_ranks(ranks)


@pytest.mark.parametrize("name", MAIN)
def test_a_fit_continues_on_another_number_of_workers(three: Workers, name: str):
    place = MAIN[name]
    stopped = [sound(outcome) for outcome in three.run(2, fit, JOBS[name], place)]
    assert_equal_ranks(stopped)
    for world in (1, 3):
        ranks = three.run(world, fit, JOBS[name], None, (place, stopped[0].state))
        assert_same(sound(ranks[0]), alone(three, name))


@pytest.mark.parametrize("name", sorted(MAIN.keys() & TRAINED))
def test_float32_begins_alike(three: Workers, name: str):
    """The first step, before rounding has gone through an optimizer."""
    job = JOBS[name]._replace(double=False)
    place = (MAIN[name][0], 1)
    first = [next(step for step in sound(three.run(world, fit, job, place)[0]).losses if step) for world in (1, 2, 3)]
    for found in first[1:]:
        assert found == pytest.approx(first[0], rel=FIRST_RTOL, abs=1e-6)


@pytest.mark.parametrize("name", MAIN)
def test_a_value_that_is_not_finite_on_one_rank_stops_all(three: Workers, name: str):
    options = {**JOBS[name].options, **({"source_rescale": "none"} if name == "mkd" else {})}
    for outcome in three.run(3, fit, JOBS[name]._replace(options=options, poisoned=1)):  # row 1 is on rank 1
        assert isinstance(outcome, NonFiniteLoss), outcome
        # The first that looks: of some it comes before that which trains.
        assert outcome.phase in (MAIN[name][0], "align", "statistics")
