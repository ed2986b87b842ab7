"""Studies of so many frames that no score flags them: how high the highest of m normal frames lies, few do not tell.

Were the m frames of a normal study and the N held out drawn in any order, the highest of all would be one of the
study's with a probability of m / (N + m): no p-value of a highest score that is valid can be smaller than that.
"""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import Any

import numpy as np

from ad_jobs.deciding.cells import Cell
from ad_jobs.deciding.judges import Judges
from ad_jobs.deciding.stacks import StackJudge, Stacks
from ad_jobs.run_specs import DecideSpec

Sizes = dict[Cell, Counter[int]]


def sizes_of(stacks: Stacks) -> Sizes:
    """Of each cell how many studies, or series, have how many frames."""
    found: Sizes = {}
    for cell, rows in stacks.cells(whole=False):
        found.setdefault(cell, Counter()).update(rows["frames"].to_pylist())
    return found


def beyond_reach(spec: DecideSpec, judges: Judges[StackJudge], sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Of each model what its rule cannot flag whatever it scores; none of a rule that asks for no p.

    Returns:
        By model: `count` `of` so many studies, from so many `frames` on; the `largest` of them and its `smallest_p`;
        and `normals`, held-out frames that would do for it (None where no number does).
    """
    rate = spec.max_fpr if spec.max_fpr is not None else spec.fdr
    found: dict[str, dict[str, Any]] = {}
    if rate is None:
        return found
    for model_id in {cell.model_id for cell in sizes}:
        of_model = {cell: counts for cell, counts in sizes.items() if cell.model_id == model_id}
        hopeless = [
            (size, float(p), counts[size])
            for cell, counts in of_model.items()
            for size, p in zip(counts, judges.of(cell).smallest_p(np.array(list(counts))), strict=True)
            if p > rate
        ]
        if hopeless:
            largest, smallest_p, _ = max(hopeless)
            found[model_id] = {
                "count": sum(count for _, _, count in hopeless),
                "of": sum(counts.total() for counts in of_model.values()),
                "frames": min(hopeless)[0],
                "largest": largest,
                "smallest_p": smallest_p,
                # 1 - (1 - 1 / (N + 1))^m is at most m / N.
                "normals": ceil(largest / rate) if rate > 1e-12 else None,
            }
    return found
