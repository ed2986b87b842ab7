"""A decision as a list to work through: what it flagged, each once, the most suspicious first, as CSV or a workbook.

Models have scales of their own, and ranks have none: what several models flagged is one row, at the best of its ranks;
of equal ones the smaller p comes first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.deciding.record import KEY, table_of
from ad_jobs.deciding.run_stacks import instance_numbers
from ad_jobs.deciding.text import decided_units, rule_text
from ad_jobs.deciding.units import held_out_units
from ad_jobs.results.delivery import deliver_file
from ad_jobs.results.score_table import BATCH_ROWS, ScoreTable
from ad_jobs.results.tables import write_table
from ad_jobs.reviewing.verdicts import files, read_files, standing
from ad_jobs.schema import MANIFEST_HEADERS, SCORES
from cluster import storage

# Of a frame, what its decision does not have and the run's table has.
_OF_FRAMES = ("uri", "modality", "manufacturer", "study_month")
_SLICE = MANIFEST_HEADERS.field("instance_number")
_MODELS = (("model_id", pa.string()), ("place", pa.int32()), ("name", pa.string()), ("n", pa.int64()))
_VERDICTS = pa.schema([SCORES.field("object_id"), SCORES.field("frame"), ("verdict", pa.string())])
# How many held-out normals are as suspicious follows from p = (1 + so many) / (n + 1).
_LISTED = """
    WITH told AS (
        SELECT decided.*, place, name, n, CAST(round(p * (n + 1)) AS BIGINT) - 1 AS as_high
        FROM decided JOIN models ON {same_group}),
    reasons AS (
        SELECT *, name || CASE WHEN as_high = 0 THEN 'none' ELSE CAST(as_high AS VARCHAR) END || ' of ' || n
            || ' held-out normal {units} ' || CASE WHEN as_high > 1 THEN 'are' ELSE 'is' END || ' {as_high}' AS reason
        FROM told),
    units AS (
        SELECT *, row_number() OVER (PARTITION BY {unit} ORDER BY rank, p, place) AS turn,
            string_agg(reason, '; ') OVER (
                PARTITION BY {unit} ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS why
        FROM reasons)
    SELECT row_number() OVER (ORDER BY rank, p, object_id, frame, {unit}) AS rank, why, verdict, {shown},
        '{rule}' AS rule, '{decision}' AS decision, object_id
    FROM units {scores} LEFT JOIN verdicts USING (object_id, frame)
    WHERE turn = 1 ORDER BY 1
"""
_FRAMES = """uri AS path, "group" AS study, instance_number AS slice, frame, scores.modality, scores.manufacturer,
        scores.study_month AS month, score, p"""
_STACKS = """"group" AS {level}, uri AS path, instance_number AS slice, frame, position, of_frames, frames,
        flagged_frames, {failed} AS failed_frames, modality, manufacturer, study_month AS month, score, p"""


def write_worklist(table: ScoreTable, decision: dict[str, Any], uri: str) -> None:
    """Write what a decision flagged to a file: a workbook where its name ends with .xlsx, else CSV.

    Raises:
        UsageError: another file is there, or it cannot be written.
        JobError: a part of the run, or a file of its verdicts, is missing or damaged.
    """
    filesystem, path = storage.filesystem(table_of(table.uri, decision["decision_id"]))
    with filesystem.open_input_file(path) as file, tempfile.TemporaryDirectory(prefix="retroscan-list-") as folder:
        decided = pq.ParquetFile(file)
        tables = {
            "decided": _flagged(decided, table),
            "models": _models(table, decision),
            "verdicts": _verdicts(table.uri),
        }
        of_frames = decision["level"] == "image"
        if of_frames:
            scores = pa.schema([SCORES.field(name) for name in [*KEY, *_OF_FRAMES]])
            tables["scores"] = Stream(scores, (_scored(rows) for rows in table.batches([*scores.names, "score"])))
        with streaming(tables) as connection:
            listed = connection.sql(_sql(decision, decided.schema_arrow)).to_arrow_reader(BATCH_ROWS)
            made = Path(folder) / ("list.xlsx" if uri.endswith(".xlsx") else "list.csv")
            write_table(Stream(listed.schema, listed), made)
        deliver_file(made, uri, "--worklist")


def _sql(decision: dict[str, Any], schema: pa.Schema) -> str:
    level, by = decision["level"], decision.get("by") or []
    columns = ", ".join(f'"{name}"' for name in by)
    of_frames = level == "image"
    # Decisions of earlier versions do not say it.
    failed = "failed_frames" if "failed_frames" in schema.names else "NULL"
    return _LISTED.format(
        same_group=" AND ".join(f'decided."{name}" IS NOT DISTINCT FROM models."{name}"' for name in ["model_id", *by]),
        units=held_out_units(decided_units(decision)),
        as_high="as high" if of_frames else "as suspicious",
        unit="object_id, frame" if of_frames else ", ".join(['"group"', *([columns] if by else [])]),
        shown=_FRAMES if of_frames else _STACKS.format(level=level, failed=failed),
        scores=f"JOIN scores USING ({', '.join(KEY)})" if of_frames else "",
        # A cell that begins with a dash would be taken for a formula.
        rule=rule_text(decision).removeprefix("--").replace(" --", ", ").replace("'", "''"),
        decision=decision["decision_id"],
    )


def _flagged(decided: pq.ParquetFile, table: ScoreTable) -> Stream:
    """The rows that are flagged, of frames with their instance numbers."""
    schema = decided.schema_arrow
    if _SLICE.name in schema.names:
        return Stream(schema, (rows.filter(rows["flagged"]) for rows in decided.iter_batches(BATCH_ROWS)))
    numbers = instance_numbers(table.uri, table.record)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in decided.iter_batches(BATCH_ROWS):
            rows = batch.filter(batch["flagged"])
            known = _SLICE.name in numbers.names
            number = numbers.of(_SLICE.name, rows["object_id"]) if known else pa.nulls(rows.num_rows, _SLICE.type)
            yield rows.append_column(_SLICE, number)

    return Stream(schema.append(_SLICE), batches())


def _models(table: ScoreTable, decision: dict[str, Any]) -> Stream:
    """Of each model, and group of `--by`, how many held-out normals its rows were ranked among."""
    kinds = [model.kind for model in table.record.models]
    by, rows = decision.get("by") or [], []
    for place, model in enumerate(table.record.models):
        name = model.kind if kinds.count(model.kind) == 1 else f"{model.kind} {model.model_id}"
        told = next(one for one in decision["models"] if one["model_id"] == model.model_id)
        for group in told.get("groups", [told]):
            rows.append(
                {"model_id": model.model_id, "place": place, "name": f"{name}: " if len(kinds) > 1 else ""}
                | {"n": group["n_normal"], **group.get("values", {})}
            )
    return Stream.of(pa.Table.from_pylist(rows, pa.schema([*_MODELS, *((name, pa.string()) for name in by)])))


def _verdicts(run_uri: str) -> Stream:
    """What reviewers say of each frame."""
    said: dict[tuple[int, int], list[str]] = {}
    for one in standing(read_files(run_uri, files(run_uri))):
        said.setdefault(one.key, []).append(f"{one.verdict} ({one.reviewer})")
    rows = [{"object_id": key[0], "frame": key[1], "verdict": ", ".join(words)} for key, words in said.items()]
    return Stream.of(pa.Table.from_pylist(rows, _VERDICTS))


def _scored(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that a decision can have, without their scores."""
    return rows.filter(pc.is_valid(rows["score"])).select(rows.schema.names[:-1])
