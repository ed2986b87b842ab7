"""A table in, small results out, on Ray Data: a source of slices, and a last stage whose answers the driver follows.

Ray Data has a job checkpoint of its own.
It is not used, for reasons found in 2.60.
Its filter is an actor of one CPU and 1 GiB that holds the ids of all finished rows.
And on S3, where its rename is a copy and a delete, a driver that dies in between makes the next one delete a part and
keep its ids.
What is done follows from the parts themselves instead, and the source holds only what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import DataContext, Datasource, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask


class SliceSource(Datasource):
    """The rows of a table as one read task for each `rows` of them.

    `read_parquet` aborts when a node dies, and makes one task of a small table however many are asked for.
    """

    def __init__(self, table: pa.Table, rows: int) -> None:
        super().__init__()
        self._table = table
        self._rows = rows

    @property
    def tasks(self) -> int:
        """How many read tasks there will be."""
        return -(-self._table.num_rows // self._rows)

    def estimate_inmemory_data_size(self) -> int | None:
        return int(self._table.nbytes)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task a slice, however many Ray would like."""
        del parallelism, data_context
        return [
            ReadTask(_Slice(part), _metadata(part), part.schema, per_task_row_limit)
            for part in _slices(self._table, self._rows)
        ]


class _Slice:
    """A read function that holds its own rows and nothing else."""

    # Ray names the function in a warning about large ones.
    __name__ = "manifest slice"

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows

    def __call__(self) -> Iterable[pa.Table]:
        return [self._rows]


def _slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, rows):
        # `take` copies: a mere slice would carry the whole table into each task when it is pickled.
        yield table.take(pa.array(range(start, min(start + rows, table.num_rows)), pa.int64()))


def _metadata(part: pa.Table) -> BlockMetadata:
    return BlockMetadata(num_rows=part.num_rows, size_bytes=part.nbytes, exec_stats=None, input_files=None)


def follow(
    dataset: ray.data.Dataset, finish: Callable[[pa.Table], pa.Table], *, rows: int, tasks: int, num_cpus: float
) -> Iterator[dict[str, Any]]:
    """Run the dataset, `finish` last on every `rows` of its rows; the rows that `finish` returns, as they come.

    At most so many `tasks` of `num_cpus` finish rows at once.

    A task that is lost runs again, so `finish` must do the same for the same rows.
    To stop following is to stop the run.
    """
    finished = dataset.map_batches(
        finish,
        batch_size=rows,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        zero_copy_batch=True,
        # Without a bound Ray keeps a third of all free CPUs for these tasks, which they hardly use.
        compute=TaskPoolStrategy(size=tasks),
    )
    batches = iter(finished.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    for batch in batches:
        yield from batch.to_pylist()
