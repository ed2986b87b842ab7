"""The score table of a finished run, read in bounded memory: a batch of rows after the other, or by SQL that spills."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ad_jobs.archive.condition import columns_in, rows_where
from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.errors import JobError
from ad_jobs.results.parts import RowGroup, part_rows, part_uris, row_groups
from ad_jobs.results.run import RunRecord
from ad_jobs.schema import SCORES
from cluster import storage
from cluster.counting import counted

# How the table is ordered where its order counts.
ORDER = ("object_id", "frame", "model_id")
BATCH_ROWS = 65_536
# Footers that are read at a time.
FOOTERS = 8


class Rows(ABC):
    """Rows of the score table, wherever they are read from."""

    # By which columns they are ordered where their order counts.
    order: tuple[str, ...] = ORDER

    @abstractmethod
    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows, these columns of them, in no order.

        Raises:
            JobError: they cannot be read, or are not what the run's record lists.
        """

    def query(
        self, sql: str, columns: Sequence[str], parameters: Sequence[object] = (), **tables: pa.Table
    ) -> pa.Table:
        """The result of our own SQL (DuckDB's dialect) over `scores`, which has these columns, and over `tables`.

        Raises:
            JobError: as `batches`.
        """
        known = {"scores": self._stream(columns), **{name: Stream.of(table) for name, table in tables.items()}}
        with streaming(known) as connection:
            return connection.sql(sql, params=list(parameters)).to_arrow_table()

    def rows(self, columns: Sequence[str], where: str | None = None) -> pa.Table:
        """The rows that meet a user's SQL condition, all without one, ordered; others do not stay in memory.

        Raises:
            UsageError: it is no condition over this table.
            JobError: as `batches`.
        """
        needed = dict.fromkeys([*columns, *self.order])
        if where is not None:
            needed |= dict.fromkeys(columns_in(where, SCORES.names))
        if where is None:
            found = pa.Table.from_batches(self.batches(list(needed)), _schema(needed))
            return found.sort_by([(name, "ascending") for name in self.order]).select(list(columns))
        names = f"Columns: {', '.join(SCORES.names)}."
        stream = self._stream(list(needed))
        found = rows_where(stream, "scores", where, columns=columns, order=self.order, help=names)
        return found.cast(_schema(columns))

    def _stream(self, columns: Sequence[str]) -> Stream:
        return Stream(_schema(columns), self.batches(columns))


class ScoreTable(Rows):
    """The parts that the run's record lists, and no others: a stray file in scores/ is not part of the run."""

    def __init__(self, run_uri: str, record: RunRecord) -> None:
        self.uri = run_uri
        self.record = record

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows, these columns of them, in no order.

        Raises:
            JobError: a part that the record lists is missing, damaged, or has another number of rows.
        """
        schema = _schema(columns)
        for part in self.record.parts:
            uri, rows = storage.join(self.uri, part.name), 0
            try:
                for batch in RowGroup(uri).batches(columns, BATCH_ROWS):
                    rows += batch.num_rows
                    yield batch.select(list(columns)).cast(schema)
            except (OSError, pa.ArrowException) as error:
                raise JobError(
                    f"{uri} is listed in run.json and cannot be read.", "Restore it, or scan again."
                ) from error
            _check_rows(uri, rows, part.rows)

    @contextmanager
    def copied(self, columns: Sequence[str]) -> Iterator[CopiedTable]:
        """These columns in one local file, for as long as the context lasts: for who looks at the rows more than once.

        Opening a part of a scan takes longer than reading its rows.
        """
        with tempfile.TemporaryDirectory(prefix="retroscan-table-") as folder:
            path = Path(folder) / "scores.parquet"
            schema = _schema(columns)
            with pq.ParquetWriter(path, schema) as writer:
                held: list[pa.RecordBatch] = []
                rows = 0
                for batch in self.batches(columns):
                    held.append(batch)
                    rows += batch.num_rows
                    if rows >= BATCH_ROWS:
                        writer.write_table(pa.Table.from_batches(held))
                        held, rows = [], 0
                writer.write_table(pa.Table.from_batches(held, schema))
            yield CopiedTable(self, path)

    def of_objects(self, ids: Sequence[int]) -> pa.Table:
        """All rows of these objects, ordered; of a row group that can hold none of them the footer alone is read."""
        wanted = np.unique(np.asarray(ids, np.int64))
        found = [SCORES.empty_table()]
        for part in self.record.parts:
            for group in row_groups(storage.join(self.uri, part.name)):
                if np.searchsorted(wanted, group.least) < np.searchsorted(wanted, group.greatest, side="right"):
                    for batch in group.batches(SCORES.names, BATCH_ROWS):
                        rows = batch.filter(pc.is_in(batch["object_id"], pa.array(wanted)))
                        found.append(pa.Table.from_batches([rows]).select(SCORES.names).cast(SCORES))
        return pa.concat_tables(found).sort_by([(name, "ascending") for name in ORDER])

    def dataset(self) -> ds.Dataset:
        """The table as a pyarrow dataset, for whoever streams or filters it: schema.SCORES, unordered.

        It keeps what it reads of the parts' footers, some 80 KB of each.

        Raises:
            JobError: a part that the record lists is missing, or has another number of rows.
        """
        filesystem, _ = storage.filesystem(self.uri)
        parts = [storage.join(self.uri, part.name) for part in self.record.parts]
        try:
            with ThreadPoolExecutor(FOOTERS) as pool:
                for part, rows in zip(self.record.parts, pool.map(part_rows, parts), strict=True):
                    _check_rows(storage.join(self.uri, part.name), rows, part.rows)
        except (OSError, pa.ArrowException) as error:
            raise JobError(
                f"A part that run.json lists cannot be read: {error}.", "Restore it, or scan again; see verify."
            ) from error
        return ds.dataset(
            [storage.filesystem(uri)[1] for uri in parts], schema=SCORES, filesystem=filesystem, format="parquet"
        )


class CopiedTable(ScoreTable):
    """Some columns of a table, in a local file."""

    def __init__(self, original: ScoreTable, path: Path) -> None:
        super().__init__(original.uri, original.record)
        self.path = path

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows, these columns of them, in no order."""
        # Read ahead, it would keep the bytes of all row groups to the end.
        for batch in pq.ParquetFile(self.path, pre_buffer=False).iter_batches(BATCH_ROWS, columns=list(columns)):
            yield batch.select(list(columns))


class UnfinishedTable(Rows):
    """What an unfinished run has so far: the parts that lie there."""

    def __init__(self, run_uri: str) -> None:
        self.uri = run_uri

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        schema = _schema(columns)
        for uri in part_uris(self.uri):
            for batch in RowGroup(uri).batches(columns, BATCH_ROWS):
                yield batch.select(list(columns)).cast(schema)


def _schema(columns: Iterable[str]) -> pa.Schema:
    return pa.schema([SCORES.field(name) for name in columns])


def _check_rows(uri: str, found: int, listed: int) -> None:
    if found != listed:
        raise JobError(
            f"{uri} has {counted(found, 'row')}, and run.json lists {listed}.", "Restore it, or scan again; see verify."
        )


def equal(batch: pa.RecordBatch, column: str, value: str) -> pa.BooleanArray:
    """Where a column of a batch has this value; false where it has none."""
    return pc.fill_null(pc.equal(batch[column], value), False)
