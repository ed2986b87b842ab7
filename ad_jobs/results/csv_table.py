"""Rows as CSV by RFC 4180, in UTF-8, that a spreadsheet reads as data and never as a formula."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from ad_jobs.archive.sql import Stream
from ad_jobs.results.delivery import FORMULA


def write_csv(stream: Stream, path: Path) -> int:
    """Write a header and all rows; how many there were.

    Numbers are the shortest that read back as the same, times ISO 8601 in UTC, null is empty.
    A text that begins as a formula does gets an apostrophe before it.
    """
    rows = 0
    with writing(path) as file:
        lines = csv.writer(file)
        lines.writerow(stream.schema.names)
        for batch in stream.batches:
            lines.writerows(zip(*(texts(column) for column in batch.columns), strict=True))
            rows += batch.num_rows
    return rows


@contextmanager
def writing(path: Path) -> Iterator[IO[str]]:
    """A file to be written by csv.writer, whose lines end with CR LF."""
    with path.open("w", encoding="utf-8", newline="") as file:
        yield file


def texts(column: pa.Array) -> list[str | None]:
    """A column's values as they stand in the file."""
    if pa.types.is_string(column.type):
        return [harmless(value) for value in column.to_pylist()]
    found: list[str | None] = pc.cast(column, pa.string()).to_pylist()
    return found


def text(value: Any) -> str | None:
    """A single value as it stands in the file; floats are taken for float32."""
    return texts(pa.array([value], pa.float32() if isinstance(value, float) else None))[0]


def harmless(value: str | None) -> str | None:
    """A text that no spreadsheet computes: one that begins as a formula does gets an apostrophe before it.

    >>> harmless("=1+1"), harmless("-x.png"), harmless("a=b")
    ("'=1+1", "'-x.png", 'a=b')
    """
    return "'" + value if value is not None and value.startswith(tuple(FORMULA)) else value
