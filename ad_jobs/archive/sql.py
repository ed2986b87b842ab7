"""SQL over tables that are streamed, in bounded memory: here DuckDB is opened, and nowhere else.

What it does not hold goes to a local folder.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from ad_jobs.errors import RetroscanError
from cluster.errors import Full, StorageError

# As DuckDB passes on what the system says of a full disk, or quota.
_NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
MEMORY = "256MB"
THREADS = 2


class Stream(NamedTuple):
    """A table that can be read once: its columns, and its rows as they come."""

    schema: pa.Schema
    batches: Iterable[pa.RecordBatch]

    @classmethod
    def of(cls, table: pa.Table) -> Stream:
        """One that is in memory."""
        return cls(table.schema, table.to_batches())


@contextmanager
def streaming(tables: Mapping[str, Stream], *, sealed: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection that knows these tables by their names, each for one reading.

    DuckDB has errors of its own for what is raised while a table is read: ours come out as they are.

    Args:
        tables: by their names.
        sealed: for the SQL of a user, which sees these tables, no files of anyone's, no network and no settings.
    """
    with _opened(":memory:", sealed) as connection, _known(connection, tables):
        yield connection


class Database:
    """Tables in a local file, for who asks them many times; threads may ask at once."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def execute(self, sql: str, tables: Mapping[str, Stream] | None = None, parameters: Sequence[object] = ()) -> None:
        """Our own statement, which may read these tables once; they are not known after it."""
        tables = tables or {}
        with _known(self._connection, tables):
            self._connection.execute(sql, parameters or None)
        for name in tables:
            self._connection.unregister(name)

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """The result of our own query: what comes from outside is in `parameters`."""
        with self._connection.cursor() as cursor:
            # Of each connection by itself, as below.
            cursor.execute("SET enable_progress_bar = false")
            found = cursor.execute(sql, parameters or None)
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@contextmanager
def database() -> Iterator[Database]:
    """An empty one, which is gone with its file after the block."""
    with (
        tempfile.TemporaryDirectory(prefix="retroscan-tables-") as folder,
        _opened(str(Path(folder) / "tables.duckdb"), sealed=False) as connection,
    ):
        yield Database(connection)


@contextmanager
def _opened(path: str, sealed: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="retroscan-query-") as spill:
        settings = {
            "memory_limit": MEMORY,
            "temp_directory": spill,
            "threads": str(THREADS),
            # A table is what was named, never a variable of the caller.
            "python_enable_replacements": "false",
            # Rows are told by what is in them; their order would have to be held.
            "preserve_insertion_order": "false",
        }
        with duckdb.connect(path, config=settings) as connection:
            # It would go to stdout, which is the verb's; a setting of a connection, not of the configuration.
            connection.execute("SET enable_progress_bar = false")
            if sealed:
                # Not before the folder to spill to is set.
                connection.execute("SET enable_external_access = false")
                connection.execute("SET lock_configuration = true")
            try:
                yield connection
            except duckdb.IOException as error:
                if any(text in str(error) for text in _NO_ROOM):
                    raise Full(spill, "no room is left; TMPDIR may name a larger disk") from error
                raise


@contextmanager
def _known(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, Stream]) -> Iterator[None]:
    """A block in which errors of reading these tables, which the connection knows from now on, are our own."""
    failed: list[Exception] = []

    def rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except (RetroscanError, StorageError) as error:
            failed.append(error)
            raise

    for name, (schema, batches) in tables.items():
        connection.register(name, pa.RecordBatchReader.from_batches(schema, rows(batches)))
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError):
        if failed:
            raise failed[0] from None
        raise
