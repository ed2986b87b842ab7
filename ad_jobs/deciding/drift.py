"""Where a run's scores drift from the held-out normals: by month, by maker, model and site of the scanner.

An archive holds abnormal images, and one ward more of them than another, so that a group's mean and its high scores
tell nothing of drift.
What is compared is the bulk (`likeness`): of a group's normals half should score below the median of the held-out ones,
spread there as theirs are.
Three things are tested of each group, none of which abnormal images alone bring about, as long as most of the group is
normal and what is abnormal scores above that median:

- fewer than a quarter of the group lie below: more than half of it scores higher than normals do
- more than half lie below: it scores lower
- those below are spread otherwise (Kolmogorov & Smirnov, two samples, on distinct scores alone: equal ones are never
  told apart, so that with them the test keeps its level).

Frames of one study are no independent witnesses: every test counts as many rows as the group has studies.
The least of three p-values is tripled (Bonferroni), and over all groups of a model Holm's step-down procedure (1979, A
simple sequentially rejective multiple test procedure) keeps the rate of any false call, however the tests depend on
each other: all share the held-out normals.
Of many studies a difference that matters to no one is significant, too: a group has drifted where the difference is
also large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.deciding.cells import by_model
from ad_jobs.deciding.likeness import FEW, LEAST_NORMAL, bulk
from ad_jobs.deciding.normals import HeldOutNormals
from ad_jobs.results.score_table import Rows
from ad_jobs.schema import SCORES

DRIFT_FILE = "drift.parquet"
# What groups are formed by: of the table, and of the run's manifest where it has them.
OF_THE_TABLE, OF_THE_MANIFEST = ("study_month", "manufacturer"), ("model", "site")
COLUMNS = ("object_id", "model_id", "status", "score", "flagged", "study_uid", *OF_THE_TABLE)
# Groups of fewer studies are counted and not judged.
LEAST_STUDIES = 20
# The rate of any false call among the groups of a model, and the share of the bulk that must lie elsewhere.
SIGNIFICANCE, EFFECT = 0.01, 0.1
# Bars of the held-out distribution: a group that is like it has as much in each.
BARS = 10

# A row for each group and model, the farthest first.
DRIFT = pa.schema(
    [
        SCORES.field("model_id"),
        # Which column, and its value.
        pa.field("by", pa.string()),
        pa.field("value", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("studies", pa.int64()),
        pa.field("flagged", pa.int64()),
        # Storey's estimate of the share of normals; and the distance of the two distributions below the median.
        pa.field("normal_share", pa.float64()),
        pa.field("distance", pa.float64()),
        # The share of the bulk that lies elsewhere, in [0, 1]; p, and p after Holm; null of a group too small.
        pa.field("effect", pa.float64()),
        pa.field("p", pa.float64()),
        pa.field("p_holm", pa.float64()),
        # higher | lower | wider | narrower than the held-out normals; null where it has not.
        pa.field("drifted", pa.string()),
        # The share of rows in each tenth of the held-out normals, from their lowest scores to their highest.
        pa.field("tenths", pa.list_(pa.float64())),
    ]
)
_LEVELED = pa.schema(
    [
        ("object_id", pa.int64()),
        ("model_id", pa.string()),
        ("level", pa.int64()),
        ("flagged", pa.bool_()),
        ("study_uid", pa.string()),
        *((name, pa.string()) for name in OF_THE_TABLE),
    ]
)
# An object without a study is one by itself.
_KEPT = """
    CREATE TEMP TABLE kept AS
    SELECT model_id, level, flagged, hash(coalesce(study_uid, 'object ' || object_id)) AS study, {columns}
    FROM leveled {described}
"""
_STUDIES = """
    SELECT model_id, value, count(*) FROM (SELECT DISTINCT model_id, {by} AS value, study FROM kept)
    WHERE value IS NOT NULL GROUP BY ALL
"""
_COUNTS = """
    SELECT model_id, {by} AS value, level, count(*) AS rows, count(*) FILTER (flagged) AS flagged
    FROM kept WHERE value IS NOT NULL GROUP BY ALL ORDER BY ALL
"""


class _Compared(NamedTuple):
    """A group against the held-out normals; None is what is not told."""

    normal_share: float | None = None
    distance: float | None = None
    effect: float | None = None
    p: float | None = None
    how: str | None = None


def drift(table: Rows, held_out: Mapping[str, HeldOutNormals], described: Stream | None) -> pa.Table:
    """DRIFT of a run's models against their held-out normals, each model's farthest groups first.

    A row a group is held, and the levels of one group at a time: DuckDB has the rest, and spills.

    Args:
        table: the run's rows.
        held_out: by model_id; models without are left out.
        described: of the manifest, with object_id and any of OF_THE_MANIFEST.

    Raises:
        JobError: as `Rows.batches`.
    """
    found: list[dict[str, Any]] = []
    tables = {"leveled": Stream(_LEVELED, _leveled(table, held_out))}
    named = list(OF_THE_TABLE)
    join = ""
    if described is not None:
        named += [name for name in OF_THE_MANIFEST if name in described.schema.names]
        tables["described"] = described
        join = "LEFT JOIN described USING (object_id)"
    with streaming(tables) as connection:
        connection.execute(_KEPT.format(columns=", ".join(named), described=join))
        for by in named:
            studies = {
                (model_id, value): count
                for model_id, value, count in connection.execute(_STUDIES.format(by=by)).fetchall()
            }
            batches = connection.sql(_COUNTS.format(by=by)).to_arrow_reader()
            for (model_id, value), counts, flagged in _groups(batches, held_out):
                found.append(_row(model_id, by, value, counts, flagged, studies[model_id, value], held_out[model_id]))
    return pa.Table.from_pylist([row for model_id in held_out for row in _judged(found, model_id)], DRIFT)


def _leveled(table: Rows, held_out: Mapping[str, HeldOutNormals]) -> Iterator[pa.RecordBatch]:
    for batch in table.batches(COLUMNS):
        for model_id, rows in by_model(batch, held_out):
            scores = rows["score"].to_numpy(zero_copy_only=False)
            columns = {name: rows[name] for name in _LEVELED.names if name != "level"}
            columns["level"] = pa.array(held_out[model_id].reference.levels(scores))
            yield pa.RecordBatch.from_arrays([columns[name] for name in _LEVELED.names], schema=_LEVELED)


def _groups(
    batches: pa.RecordBatchReader, held_out: Mapping[str, HeldOutNormals]
) -> Iterator[tuple[tuple[str, str], NDArray[np.int64], int]]:
    """Of each group its name, its rows by level, and those that are flagged; from rows ordered by group."""
    name: tuple[str, str] | None = None
    counts, flagged = np.zeros(0, np.int64), 0
    for batch in batches:
        columns = (batch[column].to_pylist() for column in ("model_id", "value", "level", "rows", "flagged"))
        for model_id, value, level, rows, hot in zip(*columns, strict=True):
            if (model_id, value) != name:
                if name is not None:
                    yield name, counts, flagged
                name, flagged = (model_id, value), 0
                counts = np.zeros(held_out[model_id].reference.n + 1, np.int64)
            counts[level] += rows
            flagged += hot
    if name is not None:
        yield name, counts, flagged


def _row(
    model_id: str, by: str, value: str, counts: NDArray[np.int64], flagged: int, studies: int, held_out: HeldOutNormals
) -> dict[str, Any]:
    rows = int(counts.sum())
    compared = _compared(counts, studies, held_out) if studies >= LEAST_STUDIES else _Compared()
    return {
        "model_id": model_id,
        "by": by,
        "value": value,
        "rows": rows,
        "studies": studies,
        "flagged": flagged,
        **compared._asdict(),
        "tenths": _tenths(counts),
    }


def _compared(counts: NDArray[np.int64], studies: int, held_out: HeldOutNormals) -> _Compared:
    from scipy.special import kolmogorov
    from scipy.stats import betabinom

    if (low := bulk(counts, held_out.reference)) is None:
        return _Compared()
    # As many witnesses as there are studies, the same share of them below.
    witnesses, held = studies / low.rows, held_out.studies / held_out.reference.n
    found, below, above = low.found * witnesses, low.held_out * held, low.above * held
    share, deviation = low.normal_share, low.deviation if found >= FEW else None
    fewer = betabinom.cdf(np.ceil(found), np.ceil(LEAST_NORMAL * studies), below, above)
    more = betabinom.sf(np.floor(found) - 1, studies, below, above)
    effects, p = [0.0, LEAST_NORMAL - share, share - 1], [fewer, more]
    if deviation is not None:
        effects.append(abs(deviation))
        p.append(kolmogorov(np.sqrt(found * below / (found + below)) * abs(deviation)))
    distance = None if deviation is None else abs(deviation)
    return _Compared(share, distance, max(effects), min(1.0, 3 * min(map(float, p))), _how(share, deviation))


def _how(share: float, deviation: float | None) -> str:
    """In which direction a group lies, by what its bulk is told of."""
    if deviation is None:
        return "higher" if share < 1 else "lower"
    if deviation > 0:
        return "lower" if share > 1 else "wider"
    # Rows near the median, and about as many below it as there should be, or too few.
    return "higher" if share < (1 + LEAST_NORMAL) / 2 else "narrower"


def _judged(found: Sequence[dict[str, Any]], model_id: str) -> list[dict[str, Any]]:
    """The groups of a model, the farthest first, with p after Holm and whether they have drifted."""
    groups = [row for row in found if row["model_id"] == model_id]
    tested = [row for row in groups if row["p"] is not None]
    after = holm([row["p"] for row in tested])
    for row in groups:
        row["p_holm"], row["drifted"] = None, None
    for row, p in zip(tested, after, strict=True):
        row["p_holm"] = p
        row["drifted"] = row["how"] if p < SIGNIFICANCE and row["effect"] > EFFECT else None
    ordered = sorted(groups, key=lambda row: (row["drifted"] is None, -(row["effect"] or 0), row["by"], row["value"]))
    return [{name: row[name] for name in DRIFT.names} for row in ordered]


def holm(p: Sequence[float]) -> list[float]:
    """p-values after Holm's procedure, in the order given: below a where the rate of any false call is kept at a."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    after = np.empty_like(stepped)
    after[order] = stepped
    return [float(value) for value in after]


def _tenths(counts: NDArray[np.int64]) -> list[float]:
    """The share of rows in each tenth of the levels, from the lowest scores to the highest."""
    ends = np.linspace(0, len(counts), BARS + 1).round().astype(int)
    upwards = np.concatenate([[0], np.cumsum(counts[::-1])])
    shares = np.diff(upwards[ends]) / counts.sum()
    return [float(share) for share in shares]
