"""What flags the rows of each cell, and what is recorded of a model's part of a decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_jobs.deciding.cells import Cell
from ad_jobs.deciding.judges import FrameJudge, HeldOutScores, Judges
from ad_jobs.deciding.likeness import likeness
from ad_jobs.deciding.p_values import Reference, pooled_q_values
from ad_jobs.deciding.rules import ruled
from ad_jobs.deciding.table import Verdict
from ad_jobs.run_specs import DecideSpec
from ad_jobs.scoring.thresholds import clopper_pearson

Counts = Mapping[Cell, NDArray[np.int64]]


def verdicts(
    spec: DecideSpec, judges: Judges[Any], held_out: Mapping[str, HeldOutScores], counts: Counts
) -> dict[Cell, Verdict]:
    """Of each cell what flags it: one procedure over the p of all cells of a model, ranked each by its own judge.

    Raises:
        UsageError: held-out images that cannot tell what is asked for.
    """
    found: dict[Cell, Verdict] = {}
    for model_id, held in held_out.items():
        cells = _of_model(model_id, counts)
        q_values = pooled_q_values([counts[cell] for cell in cells]) if cells else []
        if not cells:
            # What cannot be promised is refused of a model without a scored row, too.
            empty = judges.of(Cell(model_id)).reference
            ruled(spec, empty, held.anomalous, np.ones(empty.n + 1))
        for cell, q in zip(cells, q_values, strict=True):
            found[cell] = Verdict(ruled(spec, judges.of(cell).reference, held.anomalous, q), q)
    return found


def told(
    model_id: str,
    held: HeldOutScores,
    columns: Sequence[str],
    judges: Judges[Any],
    counts: Counts,
    of_cells: Mapping[Cell, Verdict],
    flagged: Mapping[Cell, int],
) -> dict[str, Any]:
    """A model's part of a decision's record; with `columns` also `groups`, each with its values."""

    def threshold(cell: Cell) -> float | None:
        # Of frames alone is it one of the score.
        return of_cells[cell].rule.threshold if cell in of_cells and isinstance(judges.of(cell), FrameJudge) else None

    def of_cell(cell: Cell, count: NDArray[np.int64]) -> dict[str, Any]:
        return _told(judges.of(cell).reference, count, threshold(cell), flagged.get(cell, 0))

    cells = _of_model(model_id, counts)
    whole = Cell(model_id)
    reference = judges.of(whole).reference
    if not columns:
        found = of_cell(whole, counts.get(whole, np.zeros(reference.n + 1, np.int64)))
    else:
        sums = {name: sum(of_cell(cell, counts[cell])[name] for cell in cells) for name in ("scored", "flagged")}
        # Each group has a threshold and a likeness of its own.
        found = _told(reference, np.zeros(reference.n + 1, np.int64), None, 0) | sums | {"likeness": None}
    groups = [
        {"values": dict(zip(columns, cell.values, strict=True)), "own": judges.has_own(cell)}
        | of_cell(cell, counts[cell])
        for cell in cells
    ]
    return {
        "calibration_id": held.calibration_id,
        "held_out_sha256": held.sha256,
        # How many studies the held-out frames are of.
        "n_groups": pc.count_distinct(held.normal["group"]).as_py(),
        "n_anomalous": len(held.anomalous),
        # Of the held-out anomalous images, with the exact interval of the rate; null where none is by its score.
        "missed": _missed(held.anomalous, threshold(whole)),
        **found,
        **({"groups": groups} if columns else {}),
    }


def _told(reference: Reference, counts: NDArray[np.int64], threshold: float | None, flagged: int) -> dict[str, Any]:
    alike = likeness(counts, reference)
    return {
        # Frames or studies that p-values are counted in.
        "n_normal": reference.n,
        "smallest_p": reference.smallest,
        # Null where it flags none, or goes by something else.
        "threshold": threshold if threshold is not None and np.isfinite(threshold) else None,
        "scored": int(counts.sum()),
        "flagged": flagged,
        "likeness": {**alike._asdict(), "doubtful": alike.doubtful},
    }


def _missed(abnormal: NDArray[np.float32], threshold: float | None) -> dict[str, Any]:
    if threshold is None:
        return {"count": None, "low": None, "high": None}
    missed = int((abnormal <= threshold).sum())
    low, high = clopper_pearson(missed, len(abnormal))
    return {"count": missed, "low": low, "high": high}


def _of_model(model_id: str, counts: Counts) -> list[Cell]:
    """A model's cells, by their values; what says nothing comes last."""
    found = [cell for cell in counts if cell.model_id == model_id]
    return sorted(found, key=lambda cell: [(value is None, value or "") for value in cell.values])
