"""How far two models, or two runs of one, order the same images in the same way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def average_ranks(scores: Floats) -> NDArray[np.float64]:
    """The rank of each score among all, 0 the lowest, float64 [n]; equal scores share the mean of theirs."""
    order = np.argsort(scores)
    in_order = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]])) if len(scores) else order
    counts = np.diff(starts, append=len(scores))
    ranks = np.empty(len(scores), np.float64)
    ranks[order] = np.repeat(starts + (counts - 1) / 2, counts)
    return ranks


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Pearson's correlation in [-1, 1]; of ranks it is Spearman's (1904).

    None of fewer than two, or where all of one are equal.
    """
    if len(a) < 2:
        return None
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip(a @ b / spread, -1, 1)) if spread > 0 else None
