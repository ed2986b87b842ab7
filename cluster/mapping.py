"""A function over many items on the workers of a cluster, its results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from cluster.session import session

Item = TypeVar("Item")
Result = TypeVar("Result")

# Under way for each CPU: the next one waits where the last one ends.
AHEAD = 2


@contextmanager
def cluster_map(
    function: Callable[[Item], Result], address: str | None
) -> Iterator[Callable[[Iterable[Item]], Iterator[Result]]]:
    """A map of `function` over items, for the block, on the cluster at `address` or RAY_ADDRESS, a CPU for each call.

    A call whose worker is lost is made again, so `function` must do the same for the same item.
    What it raises is raised here, as the class it has.

    Raises:
        ClusterError: no cluster answers at the address.
    """
    with session(address) as has:
        task = ray.remote(_call).options(num_cpus=1)
        # Sent once to each node, not with each item.
        held = ray.put(function)
        ahead = max(1, AHEAD * int(has.cpus))

        def mapped(items: Iterable[Item]) -> Iterator[Result]:
            under_way: deque[Any] = deque()
            try:
                for item in items:
                    under_way.append(task.remote(held, item))
                    if len(under_way) >= ahead:
                        yield ray.get(under_way.popleft())
                while under_way:
                    yield ray.get(under_way.popleft())
            finally:
                # Of who stopped taking results, or met an error.
                for left in under_way:
                    ray.cancel(left)

        yield mapped


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)
