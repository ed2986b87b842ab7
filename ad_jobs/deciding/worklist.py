"""A decision as a list to work through: what it flagged, by rank, as CSV."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.deciding.record import KEY, table_of
from ad_jobs.results.delivery import FORMULA, deliver_file
from ad_jobs.results.score_table import BATCH_ROWS, ScoreTable
from ad_jobs.schema import SCORES
from cluster import storage

# Of a frame, what its decision does not have and the run's table has.
_OF_FRAMES = ("uri", "study_uid", "series_uid", "modality", "manufacturer", "study_month", "heatmap")
# First in the list; what else a decision has stands behind.
_FIRST = ("rank", "model_id", "group", "uri", "frame", "score", "p", "q")
_LEFT_OUT = ("flagged",)
_BEGINS_A_FORMULA = ", ".join(f"chr({ord(one)})" for one in FORMULA)


def write_worklist(table: ScoreTable, decision_id: str, uri: str) -> None:
    """Write what a decision flagged to a CSV, by model and rank; texts that begin as formulas do get an apostrophe.

    Raises:
        UsageError: another file is there.
        JobError: a part of the run is missing or damaged.
    """
    filesystem, path = storage.filesystem(table_of(table.uri, decision_id))
    with filesystem.open_input_file(path) as file, tempfile.TemporaryDirectory(prefix="retroscan-list-") as folder:
        decided = pq.ParquetFile(file)
        schema = decided.schema_arrow
        flagged = (rows.filter(rows["flagged"]) for rows in decided.iter_batches(BATCH_ROWS))
        tables = {"decided": Stream(schema, flagged)}
        source = "decided"
        names = [name for name in schema.names if name not in _LEFT_OUT]
        if beside := [name for name in _OF_FRAMES if name not in schema.names]:
            columns = [*KEY, *beside]
            scores = pa.schema([SCORES.field(name) for name in columns])
            tables["scores"] = Stream(scores, (_scored(rows) for rows in table.batches([*columns, "score"])))
            source = f"decided JOIN scores USING ({', '.join(KEY)})"
            names += beside
        ordered = [*_FIRST, *(name for name in names if name not in _FIRST)]
        types = {field.name: field.type for field in [*schema, *SCORES]} | {field.name: field.type for field in schema}
        shown = ", ".join(_harmless(name) if pa.types.is_string(types[name]) else f'"{name}"' for name in ordered)
        with streaming(tables) as connection:
            found = connection.sql(f"SELECT {shown} FROM {source} ORDER BY model_id, rank")
            found.write_csv(str(Path(folder) / "list.csv"), header=True)
        deliver_file(Path(folder) / "list.csv", uri, "--worklist")


def _scored(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that a decision can have, without their scores."""
    return rows.filter(pc.is_valid(rows["score"])).select(rows.schema.names[:-1])


def _harmless(name: str) -> str:
    return (
        f"""CASE WHEN left("{name}", 1) IN ({_BEGINS_A_FORMULA}) THEN '''' || "{name}" ELSE "{name}" END AS "{name}\""""
    )
