"""A run's frames gathered by study or series, in bounded memory: what DuckDB cannot hold goes to a local folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.deciding.cells import By, by_model
from ad_jobs.deciding.record import KEY
from ad_jobs.deciding.stacks import OF_HIGHEST, STACKS, TOP, UID, Level, places_in
from ad_jobs.deciding.table import HeldOutRows
from ad_jobs.results.object_columns import ObjectColumns
from ad_jobs.results.score_table import BATCH_ROWS, Rows
from ad_jobs.schema import FAILED, MANIFEST_HEADERS, SCORED, SCORES

_READ = (*KEY, "score", "flagged")
_TOLD_BY = ("study_uid", "series_uid", "uri")
# What is read of the run's table.
COLUMNS = tuple(dict.fromkeys((*_READ, *_TOLD_BY, *OF_HIGHEST, "status")))
# Of the highest frame of each; names are told by their digests, so that a row to be put in order is a small one.
_HIGHEST = f"""
    WITH short AS (
        SELECT * REPLACE (md5_number(stack) AS stack, md5_number(series) AS series) FROM rows),
    placed AS (
        SELECT *, row_number() OVER in_order AS position, count(score) OVER (PARTITION BY model_id, series) AS of_frames
        FROM short
        WINDOW in_order AS (
            PARTITION BY model_id, series, score IS NULL ORDER BY instance_number NULLS LAST, object_id, frame))
    SELECT object_id, frame, model_id, score, instance_number, position, of_frames,
        CASE WHEN of_frames > 1 THEN (position - 1) / (of_frames - 1) END AS position_share,
        avg(score::DOUBLE) OVER (downwards ROWS BETWEEN CURRENT ROW AND {TOP - 1} FOLLOWING) AS mean_top,
        count(score) OVER whole AS frames, count(*) FILTER (flagged) OVER whole AS flagged_frames,
        count(*) FILTER (score IS NULL) OVER whole AS failed_frames
    FROM placed
    WINDOW whole AS (PARTITION BY model_id, stack {{by}}),
        downwards AS (PARTITION BY model_id, stack {{by}} ORDER BY score DESC NULLS LAST, object_id, frame)
    QUALIFY row_number() OVER downwards = 1 AND score IS NOT NULL
"""


def gather(
    table: Rows,
    models: Mapping[str, Any],
    level: Level,
    path: Path,
    *,
    by: By,
    numbers: ObjectColumns,
    held_out: HeldOutRows | None = None,
) -> None:
    """Write STACKS, in no order, to a Parquet file, with the columns of `by` as text.

    An object without a study, or series, belongs to its folder; one that hides where it lies is a stack by itself.
    What has several values in a column of `by` is several stacks.

    Args:
        table: the run's, which is read twice.
        models: their ids.
        level: what is gathered.
        path: a local file.
        by: columns that divide the run.
        numbers: `instance_number` of objects, if it is known.
        held_out: counts rows of held-out images.

    Raises:
        JobError: as `Rows.batches`.
    """
    fields = [pa.field(f"by_{number}", pa.string()) for number in range(len(by.columns))]
    partition = "".join(f", {field.name}" for field in fields)
    renamed = [f'{field.name} AS "{column}"' for field, column in zip(fields, by.columns, strict=True)]
    kept = [f'"{field.name}"' for field in STACKS if field.name not in by.columns]
    with tempfile.TemporaryDirectory(prefix="retroscan-gather-") as folder:
        highest = Path(folder) / "highest.parquet"
        with streaming({"rows": _frames(table, models, level, by, fields, numbers, held_out)}) as connection:
            found = connection.sql(_HIGHEST.format(by=partition))
            found.write_parquet(str(highest), compression="zstd", row_group_size=BATCH_ROWS)
        file = pq.ParquetFile(highest)
        tables = {
            "highest": Stream(file.schema_arrow, file.iter_batches(BATCH_ROWS)),
            "rows": _named(table, models, level, by, fields),
        }
        with streaming(tables) as connection:
            joined = f"SELECT {', '.join([*kept, *renamed])} FROM rows JOIN highest USING ({', '.join(KEY)})"
            connection.sql(joined).write_parquet(str(path), compression="zstd", row_group_size=BATCH_ROWS)


def _frames(
    table: Rows,
    models: Mapping[str, Any],
    level: Level,
    by: By,
    fields: list[pa.Field],
    numbers: ObjectColumns,
    held_out: HeldOutRows | None,
) -> Stream:
    """The frames that were scored or failed: what orders them, and what each belongs to."""
    schema = pa.schema(
        [
            *(SCORES.field(name) for name in _READ),
            *(("stack", pa.string()), ("series", pa.string())),
            MANIFEST_HEADERS.field("instance_number"),
            *fields,
        ]
    )
    counted = [] if held_out is None else ["content_sha256"]

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in table.batches(_columns(*_READ, *_TOLD_BY, "status", *counted, *by.of_table)):
            for model_id, rows in by_model(batch, models, SCORED, FAILED):
                if held_out is not None:
                    held_out.see(model_id, rows.filter(pc.is_valid(rows["score"])))
                ids, series = rows["object_id"], places_in(rows, "series")
                known = "instance_number" in numbers.names
                number = numbers.of("instance_number", ids) if known else pa.nulls(len(ids), pa.int32())
                stack = series if level == "series" else places_in(rows, level)
                arrays = [*(rows[name] for name in _READ), stack, series, number, *by.arrays(rows)]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return Stream(schema, batches())


def _named(table: Rows, models: Mapping[str, Any], level: Level, by: By, fields: list[pa.Field]) -> Stream:
    """The scored frames: what stands in STACKS of the highest of them, and what each belongs to."""
    names = _columns("model_id", *OF_HIGHEST)
    schema = pa.schema([*(SCORES.field(name) for name in names), ("group", pa.string()), *fields])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in table.batches(_columns(*names, *_TOLD_BY, UID[level], "status", *by.of_table)):
            for _, rows in by_model(batch, models):
                arrays = [*(rows[name] for name in names), places_in(rows, level), *by.arrays(rows)]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return Stream(schema, batches())


def _columns(*names: str) -> list[str]:
    return list(dict.fromkeys(names))
