"""RUN/studies.parquet and RUN/series.parquet: every study and series of a run, whatever was flagged."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.deciding.cells import By
from ad_jobs.deciding.gathering import gather
from ad_jobs.deciding.held_out import held_out_of
from ad_jobs.deciding.judges import HeldOutScores
from ad_jobs.deciding.stacks import NUMBER, STACKS, Level, StackJudge, Stacks
from ad_jobs.deciding.table import DECIDED
from ad_jobs.errors import UsageError
from ad_jobs.results.object_columns import ObjectColumns, manifest_of, read_object_columns
from ad_jobs.results.run import RunRecord
from ad_jobs.results.score_table import BATCH_ROWS, Rows
from cluster import storage

log = logging.getLogger("retroscan.decide")

FILES: dict[Level, str] = {"study": "studies.parquet", "series": "series.parquet"}
# By model and rank; p is null where no held-out scores say it, and the rank then that of the score.
RUN_STACKS = pa.schema([*STACKS, DECIDED.field("p"), DECIDED.field("rank")])
_RANKED = """
    SELECT *, row_number() OVER (PARTITION BY model_id ORDER BY p NULLS LAST, score DESC, object_id, frame) AS rank
    FROM stacks ORDER BY model_id, rank
"""
# In the file's metadata: of which run it is.
_RUN = b"retroscan_run"


def run_stacks(run_uri: str, level: Level) -> str:
    """Where the table lies."""
    return storage.join(run_uri, FILES[level])


def instance_numbers(run_uri: str, record: RunRecord) -> ObjectColumns:
    """`instance_number` of a run's objects, where its manifest has it.

    Raises:
        JobError: a part of the manifest is missing or damaged.
    """
    info = manifest_of(run_uri, record)
    return ObjectColumns({}) if info is None else read_object_columns(info, ["instance_number"])


def is_written(run_uri: str, record: RunRecord, level: Level) -> bool:
    """Whether the table of this very run lies there."""
    uri = run_stacks(run_uri, level)
    if not storage.exists(uri):
        return False
    filesystem, path = storage.filesystem(uri)
    try:
        found = pq.read_schema(path, filesystem=filesystem)
    except (pa.ArrowException, OSError):
        # A damaged one is written again.
        return False
    return found.remove_metadata().equals(RUN_STACKS) and (found.metadata or {}).get(_RUN) == _digest(record)


def write_run_stacks(run_uri: str, record: RunRecord, table: Rows, level: Level) -> None:
    """Write the table of a run, unless it lies there.

    Raises:
        JobError: a part of the run, or of its manifest, is missing or damaged.
    """
    if is_written(run_uri, record, level):
        return
    models = {model.model_id: model for model in record.models}
    with tempfile.TemporaryDirectory(prefix="retroscan-stacks-") as folder:
        path = Path(folder) / "gathered.parquet"
        gather(table, models, level, path, by=_UNDIVIDED, numbers=instance_numbers(run_uri, record))
        publish_run_stacks(run_uri, record, path, level)


def publish_run_stacks(run_uri: str, record: RunRecord, gathered: Path, level: Level) -> None:
    """Write the table of a run from what `gather` left in a file, not divided by anything.

    A model whose held-out scores are gone, or were changed, has no p there, and a warning says so.
    """
    held_out: dict[str, HeldOutScores | None] = {}
    for model in record.models:
        try:
            held_out[model.model_id] = held_out_of(run_uri, model)
        except UsageError as error:
            log.warning("%s has no p of model %s: %s", FILES[level], model.model_id, error)
            held_out[model.model_id] = None
    with tempfile.TemporaryDirectory(prefix="retroscan-stacks-") as folder:
        path = Path(folder) / FILES[level]
        rows = Stream(
            pa.schema(list(RUN_STACKS)[:-1]), _with_p(Stacks(gathered, held_out, _UNDIVIDED), held_out, level)
        )
        schema = RUN_STACKS.with_metadata({_RUN: _digest(record)})
        with streaming({"stacks": rows}) as connection, pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in connection.sql(_RANKED).to_arrow_reader(BATCH_ROWS):
                writer.write_batch(batch.cast(schema))
        storage.upload_file(path, run_stacks(run_uri, level))


_UNDIVIDED = By((), ObjectColumns({}))


def _with_p(stacks: Stacks, held_out: dict[str, HeldOutScores | None], level: Level) -> Iterator[pa.RecordBatch]:
    judges = {
        model_id: StackJudge.of_level(level)(held.normal)
        for model_id, held in held_out.items()
        if held is not None and held.normal.num_rows and NUMBER[level] in held.table.column_names
    }
    schema = pa.schema(list(RUN_STACKS)[:-1])
    for cell, rows in stacks.cells(whole=True):
        judge = judges.get(cell.model_id)
        p = pa.nulls(rows.num_rows, pa.float64())
        if judge is not None:
            p = pa.array(judge.reference.p()[judge.reference.levels(judge.measure(rows))])
        yield pa.RecordBatch.from_arrays([*rows.columns, p], schema=schema)


def _digest(record: RunRecord) -> bytes:
    return f"{record.run_id} {record.digest}".encode()
