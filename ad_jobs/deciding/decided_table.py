"""A run's table as a decision flags it: a frame, or every frame of a study or series that the decision flagged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.deciding.cells import divided_by, joined
from ad_jobs.deciding.record import table_of
from ad_jobs.deciding.stacks import places_in
from ad_jobs.results.score_table import BATCH_ROWS, ScoreTable
from ad_jobs.schema import SCORED, SCORES
from cluster import storage

_DECIDED = ("flagged", "threshold")
# By which a row's stack is told.
_OF_STACKS = ("study_uid", "series_uid", "uri")


class DecidedTable(ScoreTable):
    """The table with `flagged` and `threshold` of a decision; what was not scored has no flag.

    Eight bytes are held for each frame that it flags, or the name of each study.
    """

    def __init__(self, original: ScoreTable, decision: dict[str, Any]) -> None:
        """`decision` is its record, of this run.

        Raises:
            UsageError: it divides the run by columns that are not to be had any more.
        """
        self._original = original
        self._level = decision["level"]
        self._thresholds = {model["model_id"]: model["threshold"] for model in decision["models"]}
        self._by = divided_by(decision.get("by", ()) if self._level != "image" else (), original.uri, original.record)
        self._frames, self._flagged = self._read(table_of(original.uri, decision["decision_id"]))
        flagged = sum(int(model["flagged"]) for model in decision["models"])
        counts = original.record.counts
        if self._level == "image":
            counts = counts.model_copy(update={"flagged": flagged})
        super().__init__(original.uri, original.record.model_copy(update={"counts": counts}))

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows, these columns of them, in no order.

        Raises:
            JobError: as `ScoreTable.batches`.
        """
        if not set(columns) & set(_DECIDED):
            yield from self._original.batches(columns)
            return
        beside = [*_OF_STACKS, *self._by.of_table] if self._level != "image" else []
        needed = [
            name for name in [*columns, "object_id", "frame", "model_id", "status", *beside] if name not in _DECIDED
        ]
        for batch in self._original.batches(list(dict.fromkeys(needed))):
            found = {"flagged": self._flags(batch), "threshold": self._threshold(batch)}
            arrays = [found[name] if name in found else batch[name] for name in columns]
            yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema([SCORES.field(name) for name in columns]))

    def _flags(self, batch: pa.RecordBatch) -> pa.Array:
        flagged = np.zeros(batch.num_rows, bool)
        for model_id, wanted in self._flagged.items():
            of_model = pc.equal(batch["model_id"], model_id).to_numpy(zero_copy_only=False)
            if self._level == "image":
                flagged |= of_model & np.isin(self._keys(batch), wanted)
            else:
                stacks = joined(places_in(batch, self._level), *self._by.arrays(batch))
                flagged |= of_model & pc.is_in(stacks, wanted).to_numpy(zero_copy_only=False)
        return pa.array(flagged, mask=pc.not_equal(batch["status"], SCORED).to_numpy(zero_copy_only=False))

    def _threshold(self, batch: pa.RecordBatch) -> pa.Array:
        of_each = [self._thresholds.get(model_id) for model_id in batch["model_id"].to_pylist()]
        return pa.array(of_each, pa.float32())

    def _keys(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """One number for an object's frame, of those that the decision can have."""
        frame = batch["frame"].to_numpy()
        return np.where(frame < self._frames, batch["object_id"].to_numpy() * self._frames + frame, -1)

    def _read(self, uri: str) -> tuple[int, dict[str, Any]]:
        """One more than the last frame that is flagged; and of each model what is, to be looked up."""
        filesystem, path = storage.filesystem(uri)
        told_by = ["object_id", "frame"] if self._level == "image" else ["group", *self._by.columns]
        rows = []
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=["model_id", *told_by, "flagged"]):
                rows.append(batch.filter(batch["flagged"]))
        schema = rows[0].schema if rows else pa.schema([("model_id", pa.string()), ("frame", pa.int32())])
        table = pa.Table.from_batches(rows, schema)
        frames = int(pc.max(table["frame"]).as_py() or 0) + 1 if self._level == "image" else 0
        found: dict[str, Any] = {}
        for model_id in pc.unique(table["model_id"]).to_pylist():
            of_model = table.filter(pc.equal(table["model_id"], model_id))
            if self._level == "image":
                found[model_id] = of_model["object_id"].to_numpy() * frames + of_model["frame"].to_numpy()
            else:
                found[model_id] = joined(of_model["group"], *(of_model[name] for name in self._by.columns))
        return frames, found
