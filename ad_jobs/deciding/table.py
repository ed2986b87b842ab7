"""The rows of a decision, written in bounded memory: what DuckDB cannot hold goes to a local folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_jobs.archive.containers_names import folder_of
from ad_jobs.archive.identifiers import HASHED
from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.deciding.cells import By, Cell, by_model, by_values
from ad_jobs.deciding.judges import HeldOutScores, Judges
from ad_jobs.deciding.rules import Ruled
from ad_jobs.results.score_table import Rows
from ad_jobs.schema import SCORES

# What a rule says of each row.
DECIDED = pa.schema(
    [
        # Conformal, in (0, 1]; and the least rate of false discoveries at which the row is flagged.
        pa.field("p", pa.float64()),
        pa.field("q", pa.float64()),
        pa.field("flagged", pa.bool_()),
        # 1 is the most suspicious of the model's rows: by p, then by score; of equal ones the first in the table.
        pa.field("rank", pa.int64()),
    ]
)
# A row for each frame and model that was scored; behind them the columns of `--by`.
DECISIONS = pa.schema(
    [
        *(SCORES.field(name) for name in ("object_id", "frame", "model_id", "score")),
        *DECIDED,
        # The study, or the folder of an object without one; null where the run hides both.
        pa.field("group", pa.string()),
    ]
)
_KEPT = ("object_id", "frame", "model_id", "score")


class Units(Protocol):
    """What is decided: frames, or studies as a whole."""

    by: By
    # What stands of each in the decision's table, the columns of `by` left out.
    schema: pa.Schema

    def cells(self, *, whole: bool) -> Iterator[tuple[Cell, pa.RecordBatch]]:
        """All units by their cells, some at a time; with all of their columns only if `whole`.

        Raises:
            JobError: as `Rows.batches`.
        """
        ...


class HeldOutRows:
    """How many rows have the content of an object that was held out, by model."""

    def __init__(self, held_out: Mapping[str, HeldOutScores]) -> None:
        self._objects = {model_id: pc.unique(held.table["object"]) for model_id, held in held_out.items()}
        self.count: Counter[str] = Counter()

    def see(self, model_id: str, rows: pa.RecordBatch) -> None:
        """Count among some scored rows of a model."""
        self.count[model_id] += pc.sum(pc.is_in(rows["content_sha256"], self._objects[model_id])).as_py() or 0


class Frames:
    """Every scored frame by itself."""

    schema = pa.schema([*(DECISIONS.field(name) for name in (*_KEPT, "group"))])

    def __init__(self, table: Rows, models: Mapping[str, Any], by: By, held_out: HeldOutRows) -> None:
        """`held_out` is counted in a reading that is not whole."""
        self.by = by
        self._table, self._models, self._held_out = table, models, held_out

    def cells(self, *, whole: bool) -> Iterator[tuple[Cell, pa.RecordBatch]]:
        columns = [*_KEPT, "status", *self.by.of_table, *(["study_uid", "uri"] if whole else ["content_sha256"])]
        schema = pa.schema([*(self.schema if whole else list(self.schema)[: len(_KEPT)]), *self.by.fields])
        for batch in self._table.batches(list(dict.fromkeys(columns))):
            for model_id, rows in by_model(batch, self._models):
                if not whole:
                    self._held_out.see(model_id, rows)
                arrays = [*(rows[name] for name in _KEPT), *([group_of(rows)] if whole else []), *self.by.arrays(rows)]
                named = pa.RecordBatch.from_arrays(arrays, schema=schema)
                for values, of_cell in by_values(named, self.by.columns):
                    yield Cell(model_id, values), of_cell


def levels(units: Units, judges: Judges[Any]) -> dict[Cell, NDArray[np.int64]]:
    """Of each cell how many units are of each level of its judge.

    Raises:
        JobError: as `Units.cells`.
    """
    counts: dict[Cell, NDArray[np.int64]] = {}
    for cell, rows in units.cells(whole=False):
        judge = judges.of(cell)
        found = np.bincount(judge.reference.levels(judge.measure(rows)), minlength=judge.reference.n + 1)
        counts[cell] = counts[cell] + found if cell in counts else found
    return counts


class Verdict(NamedTuple):
    """What flags the units of a cell, and q of each level."""

    rule: Ruled
    q: NDArray[np.float64]


def write(units: Units, judges: Judges[Any], verdicts: Mapping[Cell, Verdict], path: Path) -> dict[Cell, int]:
    """Write the units with DECIDED, by model and rank, to a Parquet file; of each cell those that are flagged.

    Raises:
        JobError: as `Units.cells`.
    """
    names = [*units.schema.names, *units.by.columns]
    judged = pa.schema([*units.schema, *units.by.fields, *list(DECIDED)[:2], ("above", pa.bool_())])
    # Of a rule without a threshold, which knows no cells but models.
    tops = {cell.model_id: verdict.rule.top for cell, verdict in verdicts.items()}
    tables = {
        "judged": Stream(judged, _judged(units, judges, verdicts, judged)),
        "tops": Stream(
            pa.schema([("model_id", pa.string()), ("top", pa.int64())]),
            pa.table(
                {"model_id": pa.array(tops, pa.string()), "top": pa.array(tops.values(), pa.int64())}
            ).to_batches(),
        ),
    }
    kept = ", ".join(f'"{name}"' for name in names if name != "group" and name not in units.by.columns)
    last = ", ".join(f'"{name}"' for name in ("group", *units.by.columns))
    ranked = f"""
        SELECT {kept}, p, q, coalesce(above, rank <= top) AS flagged, rank, {last}
        FROM (
            SELECT *, row_number() OVER (PARTITION BY model_id ORDER BY p, score DESC, object_id, frame) AS rank
            FROM judged) LEFT JOIN tops USING (model_id)
        ORDER BY model_id, rank
    """
    columns = ", ".join(f'"{name}"' for name in ("model_id", *units.by.columns))
    counted = f"SELECT {columns}, count(*) FROM read_parquet($path) WHERE flagged GROUP BY ALL"
    with streaming(tables) as connection:
        connection.sql(ranked).write_parquet(str(path), compression="zstd")
        found = connection.sql(counted, params={"path": str(path)}).fetchall()
    return dict.fromkeys(verdicts, 0) | {Cell(row[0], tuple(row[1:-1])): row[-1] for row in found}


def _judged(
    units: Units, judges: Judges[Any], verdicts: Mapping[Cell, Verdict], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for cell, rows in units.cells(whole=True):
        judge, verdict = judges.of(cell), verdicts[cell]
        measured = judge.measure(rows)
        of_each = judge.reference.levels(measured)
        threshold = verdict.rule.threshold
        above = pa.nulls(len(measured), pa.bool_()) if threshold is None else pa.array(measured > threshold)
        arrays = [*rows.columns, pa.array(judge.reference.p()[of_each]), pa.array(verdict.q[of_each]), above]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def group_of(rows: pa.RecordBatch) -> pa.Array:
    """Of each row the study, or the folder of an object without one; null where the run hides both."""
    study = rows["study_uid"]
    return pc.coalesce(study, folders(rows["uri"])) if study.null_count else study


def folders(uris: pa.Array) -> pa.Array:
    """Of each URI its folder, as `folder_of` has it; null where it is hidden."""
    found = pc.replace_substring_regex(uris, "/[^/]*$", "")
    # Members of containers, and what lies in no folder, or in the root: one by one, as they are few.
    others = pc.or_(pc.match_substring(uris, "!/"), pc.invert(pc.match_substring(found, "/")))
    if pc.any(others).as_py():
        found = pc.replace_with_mask(
            found, others, pa.array(map(folder_of, uris.filter(others).to_pylist()), pa.string())
        )
    return pc.if_else(pc.starts_with(uris, HASHED), pa.scalar(None, pa.string()), found)
