"""Studies as a whole: a study is as suspicious as its highest score, seen that the more frames the higher that comes.

Of m frames of a normal study the highest reaches a p of p_min by chance with 1 - (1 - p_min)^m, were they independent
(Sidak 1967).
Frames of one study are not, so that this is no p-value yet, but a measure: how often it comes out so small is counted
among the held-out studies, each of them measured against the frames of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.deciding.p_values import Reference, q_values
from ad_jobs.deciding.rules import Ruled
from ad_jobs.deciding.table import DECISIONS, by_model, group_of
from ad_jobs.results.score_table import Rows
from ad_jobs.schema import SCORES

# How many of a study's highest scores `mean_top` is of.
TOP = 3
# A row for each study and model.
STUDIES = pa.schema(
    [
        pa.field("group", pa.string()),
        SCORES.field("model_id"),
        # The highest of its frames; and the mean of the TOP highest, or of all where there are fewer.
        SCORES.field("score"),
        pa.field("mean_top", pa.float64()),
        # Scored ones, and those that the run flagged.
        pa.field("frames", pa.int64()),
        pa.field("flagged_frames", pa.int64()),
        # Of the highest score; of equal ones the first in the table.
        SCORES.field("object_id"),
        SCORES.field("frame"),
        SCORES.field("heatmap"),
        *(DECISIONS.field(name) for name in ("p", "q", "flagged", "rank")),
    ]
)
_READ = ("object_id", "frame", "model_id", "score", "flagged", "heatmap")
_ROWS = pa.schema([*(SCORES.field(name) for name in _READ), ("group", pa.string())])
# An object whose place and study are hidden is a study of its own.
_STUDIES = f"""
    WITH grouped AS (SELECT * REPLACE (coalesce("group", 'object ' || object_id) AS "group") FROM scores)
    SELECT "group", model_id, max(score) AS score, list_avg(max(score, {TOP})) AS mean_top,
        count(*) AS frames, count(*) FILTER (flagged) AS flagged_frames,
        min(struct_pack(below := -score, object_id := object_id, frame := frame, heatmap := heatmap)) AS first
    FROM grouped GROUP BY ALL ORDER BY ALL
"""


class HeldOutStudies(NamedTuple):
    """The held-out normals of a model: all frames, and how suspicious each of their groups is against the others."""

    frames: Reference
    studies: Reference

    @classmethod
    def of(cls, scores: NDArray[np.float32], group: NDArray[np.int32]) -> HeldOutStudies:
        """From the score and the group of every held-out normal frame."""
        ordered = np.sort(scores)
        found = []
        for number in np.unique(group):
            own = scores[group == number]
            others = len(scores) - len(own)
            # Frames of the group that score as high as its highest are the last of them.
            as_high = len(ordered) - np.searchsorted(ordered, own.max()) - int((own >= own.max()).sum())
            found.append(_suspicion(np.array([(1 + as_high) / (1 + others)]), np.array([len(own)])))
        return cls(Reference(scores), Reference(np.concatenate(found)))

    def suspicion(self, highest: NDArray[np.float32], frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """How suspicious studies are whose highest score and number of frames these are; larger is more."""
        return _suspicion(self.frames.p()[self.frames.levels(highest)], frames)


def _suspicion(least_p: NDArray[np.float64], frames: NDArray[np.int64]) -> NDArray[np.float64]:
    # -(1 - (1 - p)^m), exact where p is small.
    with np.errstate(divide="ignore"):
        return np.expm1(frames * np.log1p(-least_p))


def studies(table: Rows, models: Mapping[str, object]) -> dict[str, pa.Table]:
    """The studies of each model, STUDIES without what a rule says; a row for each is held.

    Raises:
        JobError: as `Rows.batches`.
    """
    with streaming({"scores": Stream(_ROWS, _scored(table, models))}) as connection:
        found = connection.sql(_STUDIES).to_arrow_table()
    first = found["first"].combine_chunks()
    for name in ("object_id", "frame", "heatmap"):
        found = found.append_column(name, first.field(name))
    return {model_id: found.filter(pc.equal(found["model_id"], model_id)) for model_id in models}


def _scored(table: Rows, models: Mapping[str, object]) -> Iterator[pa.RecordBatch]:
    for batch in table.batches([*_READ, "study_uid", "uri", "status"]):
        for _, rows in by_model(batch, models):
            yield pa.RecordBatch.from_arrays([*(rows[name] for name in _READ), group_of(rows)], schema=_ROWS)


def decided(found: pa.Table, held_out: HeldOutStudies, suspicion: NDArray[np.float64], rule: Ruled) -> pa.Table:
    """STUDIES of one model, by rank: of equally suspicious ones the higher score is first."""
    reference = held_out.studies
    levels = reference.levels(suspicion)
    p, counts = reference.p(), np.bincount(levels, minlength=reference.n + 1)
    score = found["score"].to_numpy()
    order = np.lexsort((np.arange(len(score)), -score, levels))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    flagged = rank <= rule.top if rule.threshold is None else suspicion > rule.threshold
    columns = {"p": p[levels], "q": q_values(counts)[levels], "flagged": flagged, "rank": rank}
    for name, values in columns.items():
        found = found.append_column(name, pa.array(values))
    return found.select(STUDIES.names).cast(STUDIES).take(pa.array(order))
