"""A function over many items on a cluster: its results in order, few calls ahead, and what it raises."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cluster.errors import ClusterError
from cluster.failures import failures
from cluster.mapping import AHEAD, cluster_map
from cluster.session import session

pytestmark = pytest.mark.ray

CPUS = 2


class Refused(Exception):
    pass


def slow_first(item: int) -> int:
    """The square of a number; the first one takes longest."""
    time.sleep(0.5 if item == 0 else 0.0)
    if item == 13:
        raise Refused("thirteen")
    if item == 14:
        raise ValueError("fourteen")
    return item * item


@pytest.fixture(scope="module", autouse=True)
def embedded() -> Iterator[None]:
    with session(num_cpus=CPUS):
        yield


def test_results_come_in_order_and_items_are_taken_when_there_is_room() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(12):
            taken.append(item)
            yield item

    with cluster_map(slow_first, None) as mapped:
        found = mapped(items())
        assert next(found) == 0
        assert len(taken) == AHEAD * CPUS
        assert list(found) == [item * item for item in range(1, 12)]
        # The same workers, a second time.
        assert list(mapped([3, 2])) == [9, 4]
        assert list(mapped([])) == []


def test_what_a_call_raises_is_raised_here() -> None:
    with pytest.raises(Refused, match="thirteen"), failures("test", Refused), cluster_map(slow_first, None) as mapped:
        list(mapped(range(20)))
    told = pytest.raises(ClusterError, match="ValueError: fourteen")
    with told, failures("test", Refused), cluster_map(slow_first, None) as mapped:
        list(mapped([1, 14]))
