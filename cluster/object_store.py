"""Results of tasks that stay in Ray's object store, where every process of a node reads them without a copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

# The place of an object in the store; as long as one is held, the object is kept.
Ref = Any


def put(value: Any) -> Ref:
    """The place of a value that is now in the store."""
    return ray.put(value)


def get(ref: Ref) -> Any:
    """The value; its arrays lie in the store's memory and cannot be written."""
    return ray.get(ref)


def run(
    function: Callable[..., tuple[Any, Any]], arguments: Iterable[tuple[Any, ...]], *, cpus: float, ahead: int
) -> Iterator[tuple[Ref, Any]]:
    """For every item of `arguments`, in order, what `function(*item)` returns: the place of one thing, and the other.

    At most `ahead` tasks are under way or unread.
    `arguments` is asked for an item when one may start: what it answers can follow from the results before.
    """
    task = ray.remote(num_cpus=cpus, num_returns=2)(function)
    waiting: deque[tuple[Ref, Ref]] = deque()
    for item in arguments:
        waiting.append(tuple(task.remote(*item)))
        if len(waiting) == ahead:
            large, small = waiting.popleft()
            yield large, ray.get(small)
    for large, small in waiting:
        yield large, ray.get(small)
