"""Tasks whose large results stay in the object store: in order, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cluster import object_store
from cluster.session import session

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    with session(num_cpus=2):
        yield


def squares(number: int) -> tuple[np.ndarray, int]:
    return np.full(3, number**2), number


def test_results_come_in_order_and_no_more_tasks_are_started_than_asked_for():
    started: list[int] = []

    def numbers() -> Iterator[tuple[int]]:
        for number in range(7):
            started.append(number)
            yield (number,)

    for expected, (large, small) in enumerate(object_store.run(squares, numbers(), cpus=1, ahead=3)):
        assert small == expected
        assert object_store.get(large).tolist() == [expected**2] * 3
        assert len(started) <= expected + 3
    assert len(started) == 7


def test_what_was_put_comes_back_unwritable():
    found = object_store.get(object_store.put(np.arange(4)))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
