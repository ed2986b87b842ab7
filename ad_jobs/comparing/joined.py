"""The rows of two runs beside each other, in a local file, and what differs between them.

An object is its URI: two runs number objects each by its own manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.comparing.settings import Pair
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.schema import SCORES
from ad_jobs.scoring.tolerances import AMP_TOLERANCE, SCORE_TOLERANCE

# What stands there of both runs.
VALUES = ("object_id", "status", "error_code", "score", "threshold", "flagged", "content_sha256")
# What may differ: the words of `differs`.
CHANGES = ("only_a", "only_b", "content", "status", "flagged", "score")
_ROWS = pa.schema([("pair", pa.int32()), *(SCORES.field(name) for name in ("uri", "frame", *VALUES))])
# A column of its own for each change; digests, which are most of a row, only where something differs.
_JOINED = f"""
    WITH rows AS (
        SELECT
            coalesce(a.uri, b.uri) AS uri, coalesce(a.frame, b.frame) AS frame, coalesce(a.pair, b.pair) AS pair,
            {", ".join(f"a.{name} AS {name}_a, b.{name} AS {name}_b" for name in VALUES)},
            b.uri IS NULL AS only_a, a.uri IS NULL AS only_b
        FROM a FULL JOIN b ON a.uri = b.uri AND a.frame = b.frame AND a.pair = b.pair),
    changes AS (
        SELECT *,
            coalesce(content_sha256_a <> content_sha256_b, false) AS content,
            NOT only_a AND NOT only_b AND (status_a IS DISTINCT FROM status_b
                OR error_code_a IS DISTINCT FROM error_code_b) AS status,
            coalesce(flagged_a <> flagged_b, false) AS flagged,
            coalesce(list_contains($same, pair) AND abs(score_b::DOUBLE - score_a) > CASE WHEN $amp
                THEN $tolerance * greatest(abs(score_a), abs(threshold_a))
                ELSE $tolerance * (1 + abs(score_a)) END, false) AS score
        FROM rows)
    SELECT * REPLACE (
        CASE WHEN differs THEN content_sha256_a END AS content_sha256_a,
        CASE WHEN differs THEN content_sha256_b END AS content_sha256_b)
    FROM (SELECT *, {" OR ".join(CHANGES)} AS differs FROM changes)
"""


def tolerance(a: ScoreTable, b: ScoreTable) -> tuple[float, bool]:
    """By how much scores of one model may differ, and whether that is reduced precision's measure."""
    amp = any(table.record.config.get("amp") for table in (a, b))
    return (AMP_TOLERANCE if amp else SCORE_TOLERANCE), amp


def join(a: ScoreTable, b: ScoreTable, compared: Sequence[Pair], folder: Path) -> Path:
    """A Parquet file in `folder` with a row for each object, frame and pair of models of either run.

    Raises:
        JobError: a part of a run is missing, damaged, or has another number of rows.
    """
    path = folder / "joined.parquet"
    within, amp = tolerance(a, b)
    parameters = {"same": [i for i, pair in enumerate(compared) if pair.same], "amp": amp, "tolerance": within}
    tables = {
        "a": Stream(_ROWS, _rows(a, [pair.a.model_id for pair in compared])),
        "b": Stream(_ROWS, _rows(b, [pair.b.model_id for pair in compared])),
    }
    with streaming(tables) as connection:
        connection.sql(_JOINED, params=parameters).write_parquet(str(path), compression="zstd")
    return path


def _rows(table: ScoreTable, models: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows under these models, whose places in the list they have for `pair`."""
    for batch in table.batches([*_ROWS.names[1:], "model_id"]):
        pair = pc.index_in(batch["model_id"], pa.array(models, pa.string()))
        numbered = pa.RecordBatch.from_arrays([pair, *(batch[name] for name in _ROWS.names[1:])], schema=_ROWS)
        yield numbered.filter(pair.is_valid())
