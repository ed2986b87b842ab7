"""A table in, parts out, on Ray Data: a source of slices, a sink of one part a task, and what is done.

Ray Data's job checkpoint commits a part in two phases: its ids as `NAME.pending.parquet`, the part, then a
rename to `NAME.parquet`. Ray's own way back from there is not used, for three reasons found in 2.60:

* its filter is an actor of one CPU and 1 GiB: beside one scoring actor, two CPUs have none left for the reader;
* every such actor holds the ids of all finished rows, and ids are fetched and sorted before the job begins;
* where the rename is a copy and a delete (S3), a driver that dies in between leaves both files. Ray then deletes
  the part, keeps its ids, and so loses its rows.

`recover` looks at the same files before the job is built, and the source holds only what is left.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs
from ray.data import DataContext, Datasource
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import IdColumnCheckpointManager
from ray.data.datasource import BlockBasedFileDatasink, ReadTask

_PENDING = ".pending.parquet"


class SliceSource(Datasource):
    """The rows of a table as one read task for each `rows` of them: a Read, as the job checkpoint demands.

    Over `from_arrow` the checkpoint silently writes rows twice, and `read_parquet` aborts when a node dies.
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

    __name__ = "manifest slice"  # Ray names the function in a warning about large ones

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


class PartSink(BlockBasedFileDatasink):
    """Writes what `finish` makes of each task's rows as one Parquet part of `schema`.

    `finish` runs inside the write, so one task's rows never part company: it may turn a row into several, and
    they stand in the same part.
    """

    def __init__(
        self,
        path: str,
        filesystem: fs.FileSystem,
        *,
        schema: pa.Schema,
        finish: Callable[[pa.Table], pa.Table],
        min_rows: int,
    ) -> None:
        super().__init__(path, filesystem=filesystem, file_format="parquet", min_rows_per_file=min_rows)
        self._schema = schema
        self._finish = finish

    def write_block_to_file(self, block: BlockAccessor, file: pa.NativeFile) -> None:
        # An explicit schema: a column without any value in this part would otherwise have no type.
        pq.write_table(self._finish(block.to_arrow()).cast(self._schema), file, compression="zstd")


class _NoFilter(IdColumnCheckpointManager):
    """Says that nothing is to be filtered: the source holds only rows that are left to do."""

    def load_checkpoint(
        self, data_file_dir: str | None = None, data_file_filesystem: fs.FileSystem | None = None
    ) -> tuple[Any, int]:
        del data_file_dir, data_file_filesystem
        return None, 0


def checkpoint(path: str, filesystem: fs.FileSystem, id_column: str) -> CheckpointConfig:
    """Ray Data's two-phase commit of parts, with `recover` in place of its filter."""
    return CheckpointConfig(
        id_column,
        path,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=_NoFilter,
    )


def recover(parts: str, commits: str, filesystem: fs.FileSystem, id_column: str) -> NDArray[np.int64]:
    """The ids of the rows in committed parts, after removing what an interrupted job left half-done.

    A part counts if and only if its committed ids stand beside it. Parts without are deleted, and so are ids
    without a part (their rows are done again). Safe to call any number of times, while nothing else writes.
    """
    names = _names(commits, filesystem)
    committed = {name.removesuffix(".parquet") for name in names if not name.endswith(_PENDING)}
    written = {name.removesuffix(".parquet") for name in _names(parts, filesystem)}
    # Parts go before the ids that vouch for them: a crash in between repeats this, never loses it.
    for stem in sorted(written - committed):
        filesystem.delete_file(posixpath.join(parts, f"{stem}.parquet"))
    for stem in sorted(committed - written):
        filesystem.delete_file(posixpath.join(commits, f"{stem}.parquet"))
    for name in sorted(name for name in names if name.endswith(_PENDING)):
        filesystem.delete_file(posixpath.join(commits, name))
    done = [
        np.asarray(_ids(posixpath.join(commits, f"{stem}.parquet"), filesystem, id_column))
        for stem in sorted(committed & written)
    ]
    return np.unique(np.concatenate(done)) if done else np.empty(0, np.int64)


def _names(folder: str, filesystem: fs.FileSystem) -> list[str]:
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=False, allow_not_found=True))
    return [
        info.base_name
        for info in infos
        if info.type == fs.FileType.File and info.base_name.endswith(".parquet")
    ]


def _ids(path: str, filesystem: fs.FileSystem, id_column: str) -> NDArray[np.int64]:
    with filesystem.open_input_file(path) as file:
        return pq.read_table(file, columns=[id_column])[id_column].to_numpy()
