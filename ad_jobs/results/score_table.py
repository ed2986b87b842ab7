"""The score table of a finished run, read in bounded memory: a batch of rows after the other, or by SQL that spills."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ad_jobs.errors import JobError
from ad_jobs.results.parts import part_rows
from ad_jobs.results.run import RunRecord
from ad_jobs.schema import SCORES
from cluster import storage

# How the table is ordered where its order counts.
ORDER = ("object_id", "frame", "model_id")
BATCH_ROWS = 65_536
# Of DuckDB's; what it needs beyond goes to a temporary folder.
QUERY_MEMORY = "256MB"
QUERY_THREADS = 2


class ScoreTable:
    """The parts that the run's record lists, and no others: a stray file in scores/ is not part of the run."""

    def __init__(self, run_uri: str, record: RunRecord) -> None:
        self.uri = run_uri
        self.record = record

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows, these columns of them, in no order.

        Raises:
            JobError: a part that the record lists is missing, damaged, or has another number of rows.
        """
        schema = pa.schema([SCORES.field(name) for name in columns])
        for part in self.record.parts:
            uri, rows = storage.join(self.uri, part.name), 0
            filesystem, path = storage.filesystem(uri)
            try:
                with filesystem.open_input_file(path) as file:
                    for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=list(columns)):
                        rows += batch.num_rows
                        yield batch.select(list(columns)).cast(schema)
            except (OSError, pa.ArrowException) as error:
                raise JobError(
                    f"{uri} is listed in run.json and cannot be read.", "Restore it, or scan again."
                ) from error
            _check_rows(uri, rows, part.rows)

    def query(
        self, sql: str, columns: Sequence[str], parameters: Sequence[object] = (), **tables: pa.Table
    ) -> pa.Table:
        """The result of our own SQL (DuckDB's dialect) over `scores`, which has these columns, and over `tables`.

        Raises:
            JobError: as `batches`.
        """
        failed: list[JobError] = []

        def rows() -> Iterator[pa.RecordBatch]:
            # What is raised within DuckDB comes out as an error of DuckDB's.
            try:
                yield from self.batches(columns)
            except JobError as error:
                failed.append(error)
                raise

        schema = pa.schema([SCORES.field(name) for name in columns])
        with tempfile.TemporaryDirectory(prefix="retroscan-query-") as spill:
            settings = {"memory_limit": QUERY_MEMORY, "temp_directory": spill, "threads": str(QUERY_THREADS)}
            try:
                with duckdb.connect(":memory:", config=settings) as connection:
                    connection.register("scores", pa.RecordBatchReader.from_batches(schema, rows()))
                    for name, table in tables.items():
                        connection.register(name, table)
                    return connection.sql(sql, params=list(parameters)).to_arrow_table()
            except duckdb.Error:
                if failed:
                    raise failed[0] from None
                raise

    def of_objects(self, ids: Sequence[int]) -> pa.Table:
        """All rows of these objects, ordered; parts and row groups that hold none of them are passed by."""
        wanted = ds.field("object_id").isin(pa.array(ids, pa.int64()))
        # One batch at a time: what is read ahead is read whole, before the filter.
        found = self.dataset().to_table(
            filter=wanted, batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1, use_threads=False
        )
        return found.sort_by([(name, "ascending") for name in ORDER])

    def dataset(self) -> ds.Dataset:
        """The table as a pyarrow dataset, for whoever streams or filters it: schema.SCORES, unordered.

        Raises:
            JobError: a part that the record lists is missing, or the parts have another number of rows.
        """
        filesystem, _ = storage.filesystem(self.uri)
        parts = [storage.filesystem(storage.join(self.uri, part.name))[1] for part in self.record.parts]
        try:
            table = ds.dataset(parts, schema=SCORES, filesystem=filesystem, format="parquet")
            # Of the parts' last bytes; a store is asked for all of them at once.
            rows = table.count_rows()
        except (OSError, pa.ArrowException) as error:
            raise JobError(
                f"A part that run.json lists cannot be read: {error}.", "Restore it, or scan again; see verify."
            ) from error
        if rows != self.record.counts.rows:
            for part in self.record.parts:
                _check_rows(storage.join(self.uri, part.name), part_rows(storage.join(self.uri, part.name)), part.rows)
            raise JobError(
                f"The parts of {self.uri} have {rows} rows, and run.json counts {self.record.counts.rows}.",
                "Restore them, or scan again; see verify.",
            )
        return table


def _check_rows(uri: str, found: int, listed: int) -> None:
    if found != listed:
        raise JobError(
            f"{uri} has {found} rows, and run.json lists {listed}.", "Restore it, or scan again; see verify."
        )


def equal(batch: pa.RecordBatch, column: str, value: str) -> pa.BooleanArray:
    """Where a column of a batch has this value; false where it has none."""
    return pc.fill_null(pc.equal(batch[column], value), False)
