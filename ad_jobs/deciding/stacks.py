"""Studies and series as a whole: one is as suspicious as its highest score, seen that more frames make that higher.

Of m frames of a normal study the highest reaches a p of p_min by chance with 1 - (1 - p_min)^m, were they independent
(Sidak 1967).
Frames of one study are not, so that this is no p-value yet, but a measure: how often it comes out so small is counted
among the held-out studies, each of them measured against the frames of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.deciding.cells import By, Cell, by_values
from ad_jobs.deciding.p_values import Reference
from ad_jobs.deciding.table import DECIDED, folders
from ad_jobs.results.score_table import BATCH_ROWS
from ad_jobs.schema import MANIFEST_HEADERS, SCORES

Level = Literal["study", "series"]
# By which column of the table an object is told to belong to one; what a calibration kept of it.
UID: dict[str, str] = {"study": "study_uid", "series": "series_uid"}
NUMBER: dict[str, str] = {"study": "group", "series": "series"}
# How many of the highest scores `mean_top` is of.
TOP = 3
# Of the frame with the highest score, as in the run's table.
OF_HIGHEST = (
    "object_id",
    "frame",
    "uri",
    "heatmap",
    "study_uid",
    "series_uid",
    "modality",
    "manufacturer",
    "study_month",
)
# A row for each study, or series, and model.
STACKS = pa.schema(
    [
        pa.field("group", pa.string()),
        SCORES.field("model_id"),
        # The highest of its frames; and the mean of the TOP highest, or of all where there are fewer.
        SCORES.field("score"),
        pa.field("mean_top", pa.float64()),
        # Scored ones, those that the run flagged, and those that failed, which are none of them.
        pa.field("frames", pa.int64()),
        pa.field("flagged_frames", pa.int64()),
        pa.field("failed_frames", pa.int64()),
        # From here on: of the highest score; of equal ones the first in the table.
        *(SCORES.field(name) for name in OF_HIGHEST),
        # Null where the run's manifest does not have it.
        MANIFEST_HEADERS.field("instance_number"),
        # Where it lies among the scored frames of its series: counted from 1, of how many, and from 0 (first) to 1.
        # By instance number, then by object and frame.
        pa.field("position", pa.int64()),
        pa.field("of_frames", pa.int64()),
        pa.field("position_share", pa.float64()),
    ]
)
# As a decision has them, the columns of `--by` behind.
STACK_DECISIONS = pa.schema([*list(STACKS)[1:], *DECIDED, STACKS.field("group")])


class StackJudge(NamedTuple):
    """The held-out normals: all frames, and how suspicious each of their studies is against the others."""

    frames: Reference
    stacks: Reference

    @classmethod
    def of_level(cls, level: Level) -> Callable[[pa.Table], StackJudge]:
        """What makes a judge of studies, or of series, from the rows of held-out normals."""
        return lambda normal: cls.of(normal["score"].to_numpy(), normal[NUMBER[level]].to_numpy())

    @classmethod
    def of(cls, scores: NDArray[np.float32], group: NDArray[np.int32]) -> StackJudge:
        """From the score of every held-out normal frame, and the number of its study or series."""
        ordered = np.sort(scores)
        order = np.argsort(group, kind="stable")
        found = []
        for own in np.split(scores[order], np.flatnonzero(np.diff(group[order])) + 1):
            others = len(scores) - len(own)
            # Frames of the study that score as high as its highest are the last of them.
            as_high = len(ordered) - np.searchsorted(ordered, own.max()) - int((own >= own.max()).sum())
            found.append(_suspicion(np.array([(1 + as_high) / (1 + others)]), np.array([len(own)])))
        return cls(Reference(scores), Reference(np.concatenate(found)))

    @property
    def reference(self) -> Reference:
        """What studies are ranked among."""
        return self.stacks

    def measure(self, rows: pa.RecordBatch) -> NDArray[Any]:
        """How suspicious STACKS are: minus the chance that so many normal frames reach so high; larger is more."""
        highest = rows["score"].to_numpy(zero_copy_only=False)
        return self.suspicion(highest, rows["frames"].to_numpy(zero_copy_only=False))

    def suspicion(self, highest: NDArray[np.float32], frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """The same of studies whose highest score and number of frames these are."""
        return _suspicion(self.frames.p()[self.frames.levels(highest)], frames)

    def smallest_p(self, frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """The p of studies of so many frames, the highest of which is above all that were held out."""
        most = _suspicion(np.full(len(frames), self.frames.smallest), frames)
        return self.stacks.p()[self.stacks.levels(most)]


def _suspicion(least_p: NDArray[np.float64], frames: NDArray[np.int64]) -> NDArray[np.float64]:
    # -(1 - (1 - p)^m), exact where p is small.
    with np.errstate(divide="ignore"):
        return np.expm1(frames * np.log1p(-least_p))


class Stacks:
    """Studies or series, as `gather` left them in a file."""

    def __init__(self, path: Path, models: Mapping[str, Any], by: By) -> None:
        self.by = by
        # A column that stands there for `--by` is not there twice.
        self.schema = pa.schema([field for field in STACKS if field.name not in by.columns])
        self._path, self._models = path, models

    def cells(self, *, whole: bool) -> Iterator[tuple[Cell, pa.RecordBatch]]:
        """All of them by their cells, some at a time; with all of their columns only if `whole`."""
        names = [*(self.schema.names if whole else ("model_id", "score", "frames")), *self.by.columns]
        for batch in pq.ParquetFile(self._path).iter_batches(BATCH_ROWS, columns=names):
            for model_id in self._models:
                of_model = batch.filter(pc.equal(batch["model_id"], model_id)).select(names)
                for values, rows in by_values(of_model, self.by.columns) if of_model.num_rows else ():
                    yield Cell(model_id, values), rows


def places_in(rows: pa.RecordBatch, level: Level) -> pa.Array:
    """Of each row its study or series: by its UID, else its folder, else it is one by itself.

    `rows` have object_id, uri and the UID.
    """
    uid = rows[UID[level]]
    if not uid.null_count:
        return uid
    alone = pc.binary_join_element_wise("object", rows["object_id"].cast(pa.string()), " ")
    return pc.coalesce(uid, folders(rows["uri"]), alone)
