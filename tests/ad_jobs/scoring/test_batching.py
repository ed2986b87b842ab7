"""How many frames are scored at once: what is asked for, or what the first batches show to be fastest."""

from __future__ import annotations

import pytest

from ad_jobs.scoring.batching import CANDIDATES, ROUNDS, BatchSize


def run(size: BatchSize, frames: int, seconds_a_frame: dict[int, float]) -> list[int]:
    """The sizes of the batches of a call with so many frames."""
    sizes = []
    for batch in size.batches(range(frames)):
        sizes.append(len(batch))
        size.took(len(batch), len(batch) * seconds_a_frame.get(len(batch), 0.0))
    return sizes


@pytest.mark.parametrize("fastest", CANDIDATES)
def test_the_fastest_stays_once_each_was_tried(fastest: int) -> None:
    size = BatchSize.measured(32)
    times = {candidate: 1.0 if candidate == fastest else 2.0 for candidate in CANDIDATES}
    tried = [candidate for candidate in CANDIDATES for _ in range(ROUNDS)]
    assert run(size, sum(tried), times) == tried
    # Whatever is slow from now on.
    assert run(size, 3 * fastest, {}) == [fastest] * 3


def test_the_first_batch_of_a_size_may_be_slow() -> None:
    size = BatchSize(4, 1)
    for frames, seconds in ((4, 100.0), (4, 4.0), (1, 3.0), (1, 3.0)):
        size.took(frames, seconds)
    assert size.now == 4


def test_no_frame_is_lost_or_turned_over_several_calls() -> None:
    size = BatchSize.measured(32)
    found = []
    for first in range(0, 400, 40):
        for batch in size.batches(range(first, first + 40)):
            found += batch
            size.took(len(batch), 1.0)
    assert found == list(range(400))


def test_a_batch_that_is_not_full_says_nothing() -> None:
    size = BatchSize(4, 1)
    for _ in range(9):
        size.took(3, 0.001)
    assert size.now == 4


def test_what_is_asked_for_stays_and_no_batch_is_larger_than_the_most() -> None:
    asked = BatchSize(8)
    assert run(asked, 40, {8: 9.0, 1: 0.1}) == [8] * 5
    few = BatchSize.measured(8)
    assert max(run(few, 100, {})) == 8
    assert run(BatchSize.measured(1), 3, {}) == [1, 1, 1]
