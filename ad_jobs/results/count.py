"""The balance of a run: every selected object stands in the table, once, under every model.

A scan that is killed, retried and resumed must not lose or repeat a row, so the counting trusts nothing but
the Parquet parts. It streams over them, a window of ids after the other, with a few fixed bytes for each object of the
window (1 + 12 per model): memory does not grow with the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ad_jobs.errors import SKIP_CODES, ErrorCode, JobError
from ad_jobs.results.parts import RowGroup, row_groups
from ad_jobs.schema import FAILED, SCORED, SKIPPED

_BATCH_ROWS = 131_072
# Objects that are counted at a time.
WINDOW = 1 << 20
# How many objects a complaint names.
_NAMED = 5
# How many rows or objects it is about, and some of them.
_Complaint = tuple[int, list[int]]
COLUMNS = ["object_id", "frame", "status", "error_code", "flagged", "heatmap", "model_id", "run_id"]

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
    uris: Sequence[str], *, objects: int, run_id: str, model_ids: list[str], selected: NDArray[np.int64] | None = None
) -> TableCounts:
    """Count the score table by object and look for lost, repeated and foreign rows.

    Args:
        uris: of the Parquet files that hold its rows.
        objects: how many objects were to be scanned.
        run_id: that every row must have.
        model_ids: the models of the run; every object must have its rows under each.
        selected: their ids, int64 [objects], ascending; None means 0 .. objects - 1.

    Raises:
        ValueError: `selected` is not ascending or not `objects` long.
    """
    if selected is not None and (len(selected) != objects or bool((np.diff(selected) <= 0).any())):
        raise ValueError(
            f"selected must hold {objects} ascending ids. Got: {len(selected)}. Sort them and drop doubles."
        )
    # One window takes all, and need not know what lies where.
    pieces = [piece for uri in uris for piece in (row_groups(uri) if objects > WINDOW else (RowGroup(uri),))]
    balance = _Balance()
    for start in range(0, max(objects, 1), WINDOW):
        end = min(objects, start + WINDOW)
        ids = np.arange(start, end) if selected is None else selected[start:end]
        # Windows leave no id out: one that is none of the run's is complained of in the window where it would be.
        low = None if start == 0 else int(ids[0])
        high = None if end == objects else end if selected is None else int(selected[end])
        tally = _Tally(ids, run_id, model_ids)
        for piece in pieces:
            if (low is None or piece.greatest >= low) and (high is None or piece.least < high):
                for batch in piece.batches(COLUMNS, _BATCH_ROWS):
                    tally.add(_between(batch, low, high))
        balance.add(tally)
    return balance.result()


def _between(batch: pa.RecordBatch, low: int | None, high: int | None) -> pa.RecordBatch:
    """The rows of ids from `low` on and below `high`; None is no bound."""
    ids = batch["object_id"].to_numpy(zero_copy_only=False)
    inside = np.ones(len(ids), bool)
    if low is not None:
        inside &= ids >= low
    if high is not None:
        inside &= ids < high
    return batch if inside.all() else batch.filter(pa.array(inside))


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


class _Balance:
    """The tallies of all windows, added up."""

    def __init__(self) -> None:
        self._outcomes = np.zeros(len(_OUTCOMES), np.int64)
        self._rows = self._flagged = self._heatmaps = 0
        self._complaints: dict[str, _Complaint] = {}

    def add(self, tally: _Tally) -> None:
        """Close a window."""
        self._outcomes += tally.close()
        self._rows += tally.rows
        self._flagged += tally.flagged
        self._heatmaps += tally.heatmaps
        for what, (n, some) in tally.complaints.items():
            _add(self._complaints, what, n, some)

    def result(self) -> TableCounts:
        """The counts, and the complaints about rows that are lost, repeated or out of place."""
        by_outcome = self._outcomes.tolist()
        counts = Counts(
            objects=sum(by_outcome),
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


class _Tally:
    """Per object its outcome; per object and model its rows, and a sum that only the frames 0 .. n-1 give."""

    def __init__(self, ids: NDArray[np.int64], run_id: str, model_ids: list[str]) -> None:
        """`ids` are the objects', ascending."""
        self._ids = ids
        self._run_id = run_id
        self._model_ids = model_ids
        self._outcome = np.zeros(len(ids), np.uint8)
        self._frames = np.zeros((len(model_ids), len(ids)), np.int32)
        self._mark = np.zeros((len(model_ids), len(ids)), np.uint64)
        self.rows = self.flagged = self.heatmaps = 0
        self.complaints: dict[str, _Complaint] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Count one batch of rows."""
        self.rows += batch.num_rows
        self.flagged += int(batch["flagged"].true_count)
        self.heatmaps += batch.num_rows - batch["heatmap"].null_count
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

    def close(self) -> NDArray[np.int64]:
        """How many objects have each outcome, once all rows are in; complains of rows that are lost or repeated."""
        longest = int(self._frames.max(initial=0))
        expected = np.zeros(longest + 1, np.uint64)
        # Modulo 2^64, as the marks.
        np.cumsum(_mix(np.arange(longest, dtype=np.uint64)), out=expected[1:])
        seen = np.zeros(len(self._ids), bool)
        for model_id, frames, mark in zip(self._model_ids, self._frames, self._mark, strict=True):
            self._complain(f"objects without a row under model {model_id}", self._ids[frames == 0])
            self._complain(
                f"objects with repeated or missing frames under model {model_id}", self._ids[mark != expected[frames]]
            )
            seen |= frames > 0
        return np.bincount(self._outcome[seen], minlength=len(_OUTCOMES))

    def _positions(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where each id stands among the objects', and whether it does."""
        if not len(self._ids):
            return np.zeros_like(ids), np.zeros(len(ids), bool)
        position = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return position, self._ids[position] == ids

    def _outcomes(self, batch: pa.RecordBatch, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Each row's outcome from its error code; complains of a status that does not go with it."""
        code = _index_of(batch["error_code"], [str(code) for code in _OUTCOMES[1:]]) + 1
        none = batch["error_code"].is_null().to_numpy(zero_copy_only=False)
        status = _index_of(batch["status"], [SCORED, SKIPPED, FAILED])
        expected = np.where(none, 0, np.where(code >= _FIRST_FAILED, 2, np.where(code > 0, 1, -1)))
        self._complain("rows whose status and error_code do not go together", ids[(status != expected) | (status < 0)])
        return np.maximum(code, 0).astype(np.uint8)

    def _complain(self, what: str, ids: NDArray[np.int64]) -> None:
        _add(self.complaints, what, len(ids), [int(i) for i in ids[:_NAMED]])


def _add(complaints: dict[str, _Complaint], what: str, count: int, some: list[int]) -> None:
    if count:
        before, named = complaints.get(what, (0, []))
        complaints[what] = (before + count, [*named, *some][:_NAMED])


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
