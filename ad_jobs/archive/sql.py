"""SQL of our own over tables that are streamed, in bounded memory: what DuckDB does not hold goes to a local folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import duckdb
import pyarrow as pa

from ad_jobs.errors import RetroscanError
from ad_jobs.results.score_table import QUERY_MEMORY, QUERY_THREADS
from cluster.errors import StorageError


class Stream(NamedTuple):
    """A table that can be read once: its columns, and its rows as they come."""

    schema: pa.Schema
    batches: Iterable[pa.RecordBatch]


@contextmanager
def streaming(tables: Mapping[str, Stream]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection that knows these tables by their names, each for one reading.

    DuckDB has errors of its own for what is raised while a table is read: ours come out as they are.
    """
    failed: list[Exception] = []

    def rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except (RetroscanError, StorageError) as error:
            failed.append(error)
            raise

    with tempfile.TemporaryDirectory(prefix="retroscan-query-") as spill:
        settings = {
            "memory_limit": QUERY_MEMORY,
            "temp_directory": spill,
            "threads": str(QUERY_THREADS),
            # A table is what was named, never a variable of the caller.
            "python_enable_replacements": "false",
            # Rows are told by what is in them; their order would have to be held.
            "preserve_insertion_order": "false",
        }
        with duckdb.connect(":memory:", config=settings) as connection:
            # It would go to stdout, which is the verb's; a setting of a connection, not of the configuration.
            connection.execute("SET enable_progress_bar = false")
            for name, (schema, batches) in tables.items():
                connection.register(name, pa.RecordBatchReader.from_batches(schema, rows(batches)))
            try:
                yield connection
            except (duckdb.Error, pa.ArrowException, OSError):
                if failed:
                    raise failed[0] from None
                raise
