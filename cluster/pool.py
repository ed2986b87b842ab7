"""A pool of actors that serves one dataset after another: what they load is loaded once.

Ray Data makes a new pool for every dataset, and ends it with the dataset: between two of them processes end, start,
import and load for some ten seconds.
Here the actors have names, under which the next dataset finds them, and this process keeps them alive meanwhile.
They are not detached: they end with the session, and with this process however it ends.
"""

from __future__ import annotations

import itertools
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.util.annotations import RayDeprecationWarning

# The first handle of each actor, which ends with the last of them; one that is got by a name does not count.
_kept: set[ActorHandle] = set()
# What they were made with, which Ray needs again where one is killed, and drops with the dataset that made it.
_kept_arguments: list[tuple[Any, Any]] = []


class LastingPool:
    """`size` actors, whose class and arguments are those of the first dataset that they work for."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._name = secrets.token_hex(8)

    def map_batches(self, dataset: Dataset, actor: type, **options: Any) -> Dataset:
        """`dataset.map_batches` by these actors; the same class and `options` each time."""
        with warnings.catch_warnings():
            # Deprecated without a successor: nothing else gives each actor a name of its own (2.60).
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return dataset.map_batches(
                actor, compute=ActorPoolStrategy(size=self._size), ray_remote_args_fn=self._named(), **options
            )

    def _named(self) -> Callable[[], dict[str, Any]]:
        """What Ray asks before it makes an actor, or gets the one that has the name already."""
        numbers = itertools.cycle(range(self._size))
        return lambda: {"name": f"{self._name}-{next(numbers)}", "get_if_exists": True}


@contextmanager
def lasting_pool(context: DataContext, size: int) -> Iterator[LastingPool]:
    """A pool for the datasets that are run in the block, under `context`, one after the other."""
    context.custom_execution_callback_classes.append(_Keep)
    try:
        yield LastingPool(size)
    finally:
        context.custom_execution_callback_classes.remove(_Keep)
        _kept.clear()
        _kept_arguments.clear()


class _Keep(ExecutionCallback):
    """Keeps what a dataset's pool has made, once it has."""

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        for operator in executor._topology or ():
            if isinstance(operator, ActorPoolMapOperator):
                # An equal handle that is in the set stays there: the first one.
                _kept.update(operator._actor_pool._actor_to_logical_id)
                _kept_arguments.append((operator._data_context_ref, operator._map_transformer_ref))
