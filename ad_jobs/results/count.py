"""The balance of a run: every selected object stands in the table, once, under every model.

A scan that is killed, retried and resumed must not lose or repeat a row, so the counting trusts nothing but
the Parquet parts. It streams over them with a few fixed bytes an object (1 + 12 per model), never a
dictionary of ids: 10 million objects take 130 MB.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ad_jobs.errors import SKIP_CODES, ErrorCode, JobError
from ad_jobs.results.parts import part_uris
from ad_jobs.schema import FAILED, SCORED, SKIPPED
from cluster import storage

_BATCH_ROWS = 131_072
_COLUMNS = ["object_id", "frame", "status", "error_code", "flagged", "heatmap", "model_id", "run_id"]

# An object's outcome is the worst of its rows': 0 scored, then the codes that skip, then those that fail.
_SKIPPING = sorted(SKIP_CODES)
_OUTCOMES = [None, *_SKIPPING, *(code for code in ErrorCode if code not in SKIP_CODES)]
_FIRST_FAILED = 1 + len(_SKIPPING)


class Counts(BaseModel):
    """The run in numbers: objects by status (they sum to `objects`), and rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objects: int = Field(ge=0)
    scored: int = Field(ge=0)
    failed: int = Field(ge=0)
    skipped: int = Field(ge=0)
    # One a frame and model.
    rows: int = Field(ge=0)
    # Rows above their model's threshold.
    flagged: int = Field(ge=0)
    # Rows whose heatmap was kept.
    heatmaps: int = Field(ge=0)
    # Objects by error code; sums to failed + skipped.
    by_code: dict[str, int] = Field(default_factory=dict)


@dataclass(frozen=True)
class TableCounts:
    """The run's counts, and what is wrong with the table; a complaint names some of the objects concerned."""

    counts: Counts
    complaints: list[str] = field(default_factory=list)


def count_table(
    run_uri: str,
    *,
    objects: int,
    run_id: str,
    model_ids: list[str],
    selected: NDArray[np.int64] | None = None,
    prefix: str = "",
) -> TableCounts:
    """Count the score table by object and look for lost, repeated and foreign rows.

    Args:
        run_uri: the run.
        objects: how many objects were to be scanned.
        run_id: that every row must have.
        model_ids: the models of the run; every object must have its rows under each.
        selected: their ids, int64 [objects], ascending; None means 0 .. objects - 1.
        prefix: of the names of the parts to count; all by default.

    Raises:
        ValueError: `selected` is not ascending or not `objects` long.
    """
    if selected is not None and (len(selected) != objects or bool((np.diff(selected) <= 0).any())):
        raise ValueError(
            f"selected must hold {objects} ascending ids. Got: {len(selected)}. Sort them and drop doubles."
        )
    table = _Tally(objects, run_id, model_ids, selected)
    for uri in part_uris(run_uri, prefix):
        filesystem, path = storage.filesystem(uri)
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=_COLUMNS):
                table.add(batch)
    return table.result()


def assert_balanced(table: TableCounts, objects: int) -> None:
    """Raise JobError unless scored + failed + skipped = `objects`, and each is in the table exactly once."""
    counts = table.counts
    complaints = list(table.complaints)
    if counts.scored + counts.failed + counts.skipped != objects:
        complaints.insert(
            0,
            f"scored {counts.scored} + failed {counts.failed} + skipped {counts.skipped} "
            f"is not the manifest's {objects}",
        )
    if complaints:
        raise JobError(
            f"The score table does not balance: {'; '.join(complaints)}.",
            "The run stays unfinished. Scan into a new folder, and let one scan at a time write to it.",
        )


class _Tally:
    """Per object its outcome; per object and model its rows, and a sum that only the frames 0 .. n-1 give."""

    def __init__(self, objects: int, run_id: str, model_ids: list[str], selected: NDArray[np.int64] | None) -> None:
        self._run_id = run_id
        self._selected = selected
        self._model_ids = model_ids
        self._objects = objects
        self._outcome = np.zeros(objects, np.uint8)
        self._frames = np.zeros((len(model_ids), objects), np.int32)
        self._mark = np.zeros((len(model_ids), objects), np.uint64)
        self._rows = self._flagged = self._heatmaps = 0
        self._complaints: dict[str, tuple[int, list[int]]] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Count one batch of rows."""
        self._rows += batch.num_rows
        self._flagged += int(batch["flagged"].true_count)
        self._heatmaps += batch.num_rows - batch["heatmap"].null_count
        ids = batch["object_id"].to_numpy(zero_copy_only=False)
        frames = batch["frame"].to_numpy(zero_copy_only=False)
        position, known = self._positions(ids)
        model = _index_of(batch["model_id"], self._model_ids)
        self._complain("rows of objects that were not to be scanned", ids[~known])
        self._complain("rows of no model of this run", ids[model < 0])
        self._complain("rows of another run", ids[_index_of(batch["run_id"], [self._run_id]) < 0])
        outcome = self._outcomes(batch, ids)
        good = known & (model >= 0)
        np.maximum.at(self._outcome, position[good], outcome[good])
        np.add.at(self._frames, (model[good], position[good]), 1)
        np.add.at(self._mark, (model[good], position[good]), _mix(frames[good].astype(np.uint64)))

    def result(self) -> TableCounts:
        """The counts, and the complaints about rows that are lost, repeated or out of place."""
        longest = int(self._frames.max(initial=0))
        expected = np.zeros(longest + 1, np.uint64)
        # Modulo 2^64, as the marks.
        np.cumsum(_mix(np.arange(longest, dtype=np.uint64)), out=expected[1:])
        seen = np.zeros(self._objects, bool)
        for model_id, frames, mark in zip(self._model_ids, self._frames, self._mark, strict=True):
            self._complain(f"objects without a row under model {model_id}", self._ids(frames == 0))
            self._complain(
                f"objects with repeated or missing frames under model {model_id}", self._ids(mark != expected[frames])
            )
            seen |= frames > 0
        by_outcome = np.bincount(self._outcome[seen], minlength=len(_OUTCOMES)).tolist()
        counts = Counts(
            objects=int(seen.sum()),
            scored=by_outcome[0],
            failed=sum(by_outcome[_FIRST_FAILED:]),
            skipped=sum(by_outcome[1:_FIRST_FAILED]),
            rows=self._rows,
            flagged=self._flagged,
            heatmaps=self._heatmaps,
            by_code={str(_OUTCOMES[i]): n for i, n in enumerate(by_outcome) if i and n},
        )
        complaints = [
            f"{n} {what} (object_id {', '.join(map(str, some))}{', …' if n > len(some) else ''})"
            for what, (n, some) in self._complaints.items()
        ]
        return TableCounts(counts, complaints)

    def _positions(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where each id stands among the selected ones, and whether it does."""
        if self._selected is None:
            return ids, (ids >= 0) & (ids < self._objects)
        position = np.minimum(np.searchsorted(self._selected, ids), self._objects - 1)
        if not self._objects:
            return position, np.zeros(len(ids), bool)
        return position, self._selected[position] == ids

    def _ids(self, which: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The ids of the objects at the positions that `which` marks."""
        return np.flatnonzero(which) if self._selected is None else self._selected[which]

    def _outcomes(self, batch: pa.RecordBatch, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Each row's outcome from its error code; complains of a status that does not go with it."""
        code = _index_of(batch["error_code"], [str(code) for code in _OUTCOMES[1:]]) + 1
        none = batch["error_code"].is_null().to_numpy(zero_copy_only=False)
        status = _index_of(batch["status"], [SCORED, SKIPPED, FAILED])
        expected = np.where(none, 0, np.where(code >= _FIRST_FAILED, 2, np.where(code > 0, 1, -1)))
        self._complain("rows whose status and error_code do not go together", ids[(status != expected) | (status < 0)])
        return np.maximum(code, 0).astype(np.uint8)

    def _complain(self, what: str, ids: NDArray[np.int64]) -> None:
        if len(ids):
            n, some = self._complaints.get(what, (0, []))
            self._complaints[what] = (n + len(ids), [*some, *map(int, ids[: 5 - len(some)])])


def _index_of(column: pa.Array, values: list[str]) -> NDArray[np.int64]:
    """The position in `values` of each string of a column; -1 for null and for what is not among them."""
    if not values:
        return np.full(len(column), -1, np.int64)
    coded = column.dictionary_encode()
    lookup = {value: index for index, value in enumerate(values)}
    codes = np.array([lookup.get(value, -1) for value in coded.dictionary.to_pylist()] + [-1], np.int64)
    return codes[coded.indices.fill_null(len(codes) - 1).to_numpy(zero_copy_only=False)]


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number spread over 64 bits (splitmix64's finalizer): sums over different frames do not meet."""
    with np.errstate(over="ignore"):
        x = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
