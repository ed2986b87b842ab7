"""Several runs as one table: of an object and a model, the rows of the newest run that has it.

Runs number their objects each by its own manifest: over several of them an object is its URI.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.errors import UsageError
from ad_jobs.results.score_table import Rows, ScoreTable
from ad_jobs.schema import SCORES

# Every object has a first frame under every model.
_FIRST_FRAMES = pa.schema([("run", pa.int32()), *(SCORES.field(name) for name in ("object_id", "model_id", "uri"))])
_SUPERSEDED = """
    SELECT run, object_id, model_id
    FROM (SELECT *, max(run) OVER (PARTITION BY uri, model_id) AS newest FROM first_frames)
    WHERE run < newest
"""
_BATCH_ROWS = 65_536


class NewestRows(Rows):
    """The rows of several runs, but for those of which a newer run has the object under the model.

    A byte is held for each object and model of the runs in which a newer one replaces something.
    """

    order = ("uri", "frame", "model_id")

    def __init__(self, tables: Sequence[ScoreTable]) -> None:
        """`tables` are the runs', from the oldest to the newest."""
        self.tables = tables

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows, these columns of them, in no order.

        Raises:
            JobError: a part that a run's record lists is missing, damaged, or has another number of rows.
        """
        needed = list(dict.fromkeys([*columns, "object_id", "model_id"]))
        for number, table in enumerate(self.tables):
            replaced = {model: held for (run, model), held in self._superseded.items() if run == number}
            for batch in table.batches(needed):
                kept = np.ones(batch.num_rows, bool)
                ids = batch["object_id"].to_numpy()
                for model_id, of_model in replaced.items():
                    mine = pc.equal(batch["model_id"], model_id).to_numpy(zero_copy_only=False)
                    kept[mine] = ~of_model[ids[mine]]
                yield (batch if kept.all() else batch.filter(pa.array(kept))).select(list(columns))

    @cached_property
    def _superseded(self) -> dict[tuple[int, str], NDArray[np.bool_]]:
        """By run and model, for every object id whether a newer run has it; only where one is."""
        found: dict[tuple[int, str], NDArray[np.bool_]] = {}
        with streaming({"first_frames": Stream(_FIRST_FRAMES, self._first_frames())}) as connection:
            for batch in connection.sql(_SUPERSEDED).to_arrow_reader(_BATCH_ROWS):
                run, ids = batch["run"].to_numpy(), batch["object_id"].to_numpy()
                models = np.asarray(batch["model_id"].to_pylist(), object)
                for number, model_id in sorted(set(zip(run.tolist(), models.tolist(), strict=True))):
                    if (number, model_id) not in found:
                        found[number, model_id] = np.zeros(_ids(self.tables[number]), bool)
                    found[number, model_id][ids[(run == number) & (models == model_id)]] = True
        return found

    def _first_frames(self) -> Iterator[pa.RecordBatch]:
        for number, table in enumerate(self.tables):
            for batch in table.batches(["object_id", "model_id", "uri", "frame"]):
                first = batch.filter(pc.equal(batch["frame"], 0)).select(["object_id", "model_id", "uri"])
                run = pa.array(np.full(first.num_rows, number, np.int32))
                yield pa.RecordBatch.from_arrays([run, *first.columns], schema=_FIRST_FRAMES)


def as_one(tables: Sequence[ScoreTable]) -> NewestRows:
    """The tables of several runs as one; the run that was started last is the newest, and newer than its parent.

    Raises:
        UsageError: there are none, a run stands there twice, or some hash their URIs and others do not.
    """
    if not tables:
        raise UsageError("One or more runs are read.", "none", "Name one.")
    ids = [table.record.run_id for table in tables]
    if twice := sorted({run_id for run_id in ids if ids.count(run_id) > 1}):
        raise UsageError("Runs that are read as one differ.", ", ".join(twice), "Name each once.")
    modes = {table.uri: table.record.config.get("identifiers", "plain") for table in tables}
    if len({mode == "hashed" for mode in modes.values()}) > 1:
        raise UsageError(
            "Over several runs an object is told by its URI: all are hashed, or none.",
            ", ".join(f"{uri} ({mode})" for uri, mode in modes.items()),
            "Read them one by one.",
        )
    return NewestRows(_by_age(tables))


def _by_age(tables: Sequence[ScoreTable]) -> list[ScoreTable]:
    """From the oldest on: by their start, but each behind the run that it was made since, whatever clocks said."""
    left = sorted(tables, key=lambda table: table.record.started_at)
    found: list[ScoreTable] = []
    while left:
        waiting = {table.record.run_id for table in left}
        oldest = next(t for t in left if t.record.parent is None or t.record.parent.run_id not in waiting)
        left.remove(oldest)
        found.append(oldest)
    return found


def _ids(table: ScoreTable) -> int:
    """One more than the largest object id of a run."""
    return 1 + max(pc.max(batch["object_id"]).as_py() for batch in table.batches(["object_id"]) if batch.num_rows)
