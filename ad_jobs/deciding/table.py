"""The rows of a decision, written in bounded memory: what DuckDB cannot hold goes to a local folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_jobs.archive.containers_names import folder_of
from ad_jobs.archive.identifiers import is_hashed
from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.deciding.p_values import Reference
from ad_jobs.deciding.rules import Ruled
from ad_jobs.results.score_table import Rows
from ad_jobs.schema import SCORED, SCORES

# A row for each frame and model that was scored.
DECISIONS = pa.schema(
    [
        *(SCORES.field(name) for name in ("object_id", "frame", "model_id", "score")),
        # Conformal, in (0, 1]; and the least rate of false discoveries at which the row is flagged.
        pa.field("p", pa.float64()),
        pa.field("q", pa.float64()),
        pa.field("flagged", pa.bool_()),
        # 1 is the most suspicious of the model's rows; of equal scores the first in the table.
        pa.field("rank", pa.int64()),
        # The study, or the folder of an object without one; null where the run hides both.
        pa.field("group", pa.string()),
    ]
)
_KEPT = ("object_id", "frame", "model_id", "score")
_JUDGED = pa.schema([*(DECISIONS.field(name) for name in (*_KEPT, "group", "p", "q")), ("above", pa.bool_())])
_RANKED = """
    SELECT object_id, frame, model_id, score, p, q,
        coalesce(above, rank <= top) AS flagged, rank, "group"
    FROM (
        SELECT *, row_number() OVER (PARTITION BY model_id ORDER BY score DESC, object_id, frame) AS rank
        FROM judged) LEFT JOIN tops USING (model_id)
    ORDER BY model_id, rank
"""


class Levels(NamedTuple):
    """What one pass over the table finds of a model: scored rows by level, and how many are held-out images."""

    counts: NDArray[np.int64]
    held_out: int


def levels(table: Rows, references: Mapping[str, Reference], held_out: Mapping[str, pa.Array]) -> dict[str, Levels]:
    """Of each model, its scored rows by level; and how many have the content of a held-out object.

    Raises:
        JobError: as `Rows.batches`.
    """
    counts = {model_id: np.zeros(reference.n + 1, np.int64) for model_id, reference in references.items()}
    same = dict.fromkeys(references, 0)
    for batch in table.batches(["model_id", "status", "score", "content_sha256"]):
        for model_id, rows in by_model(batch, references):
            reference = references[model_id]
            counts[model_id] += np.bincount(reference.levels(_floats(rows["score"])), minlength=reference.n + 1)
            same[model_id] += pc.sum(pc.is_in(rows["content_sha256"], held_out[model_id])).as_py() or 0
    return {model_id: Levels(counts[model_id], same[model_id]) for model_id in references}


def write(
    table: Rows,
    references: Mapping[str, Reference],
    q_values: Mapping[str, NDArray[np.float64]],
    rules: Mapping[str, Ruled],
    path: Path,
) -> dict[str, int]:
    """Write DECISIONS, by model and rank, to a Parquet file; of each model the rows that are flagged.

    Raises:
        JobError: as `Rows.batches`.
    """
    # Of a rule without a threshold.
    tops = {model_id: rule.top for model_id, rule in rules.items()}
    tables = {
        "judged": Stream(_JUDGED, _judged(table, references, q_values, rules)),
        "tops": Stream(
            pa.schema([("model_id", pa.string()), ("top", pa.int64())]),
            pa.table({"model_id": list(tops), "top": pa.array(tops.values(), pa.int64())}).to_batches(),
        ),
    }
    with streaming(tables) as connection:
        connection.sql(_RANKED).write_parquet(str(path), compression="zstd")
        counted = "SELECT model_id, count(*) FROM read_parquet($path) WHERE flagged GROUP BY model_id"
        flagged = connection.sql(counted, params={"path": str(path)}).fetchall()
    return dict.fromkeys(rules, 0) | dict(flagged)


def _judged(
    table: Rows,
    references: Mapping[str, Reference],
    q_values: Mapping[str, NDArray[np.float64]],
    rules: Mapping[str, Ruled],
) -> Iterator[pa.RecordBatch]:
    for batch in table.batches([*_KEPT, "study_uid", "uri", "status"]):
        for model_id, rows in by_model(batch, rules):
            scores = _floats(rows["score"])
            p = q = pa.nulls(len(scores), pa.float64())
            if (reference := references.get(model_id)) is not None:
                of_each = reference.levels(scores)
                p, q = pa.array(reference.p()[of_each]), pa.array(q_values[model_id][of_each])
            threshold = rules[model_id].threshold
            above = pa.nulls(len(scores), pa.bool_()) if threshold is None else pa.array(scores > np.float32(threshold))
            kept = [rows[name] for name in _KEPT]
            yield pa.RecordBatch.from_arrays([*kept, group_of(rows), p, q, above], schema=_JUDGED)


def group_of(rows: pa.RecordBatch) -> pa.Array:
    """Of each row the study, or the folder of an object without one; null where the run hides both."""
    folders = [None if is_hashed(uri) else folder_of(uri) for uri in rows["uri"].to_pylist()]
    return pc.coalesce(rows["study_uid"], pa.array(folders, pa.string()))


def by_model(batch: pa.RecordBatch, models: Mapping[str, object]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The scored rows of each model."""
    scored = batch.filter(pc.equal(batch["status"], SCORED))
    for model_id in models:
        rows = scored.filter(pc.equal(scored["model_id"], model_id))
        if rows.num_rows:
            yield model_id, rows


def _floats(column: pa.Array) -> NDArray[np.float32]:
    return column.to_numpy(zero_copy_only=False).astype(np.float32)
