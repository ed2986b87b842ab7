"""How far two models, or two runs of one, order the same images in the same way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Ranks:
    """The rank of each of many scores among all, 0 the lowest; equal ones share the mean of theirs.

    Four bytes are held for each.
    """

    def __init__(self, scores: Floats) -> None:
        """`scores` float32 [n], which are put in order."""
        scores.sort()
        self._in_order = scores

    def of(self, scores: Floats) -> NDArray[np.float64]:
        """The ranks of some of them, float64 of the same shape."""
        below, up_to = (np.searchsorted(self._in_order, scores, side=side) for side in ("left", "right"))
        return (below + up_to - 1) / 2

    @property
    def all_equal(self) -> bool:
        """Whether there is one score alone, or none."""
        return not len(self._in_order) or bool(self._in_order[0] == self._in_order[-1])


class Correlation:
    """Spearman's (1904) correlation of `n` rows, whose ranks come some at a time: Pearson's, of ranks."""

    def __init__(self, n: int) -> None:
        self._mean = (n - 1) / 2
        self._aa = self._bb = self._ab = 0.0

    def add(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        """Take in the ranks of some rows in both orders, each row once."""
        a, b = a - self._mean, b - self._mean
        self._aa += float(a @ a)
        self._bb += float(b @ b)
        self._ab += float(a @ b)

    @property
    def value(self) -> float | None:
        """In [-1, 1]; None of fewer than two rows, or where all scores of one order are equal."""
        spread = float(np.sqrt(self._aa * self._bb))
        return float(np.clip(self._ab / spread, -1, 1)) if spread > 0 else None
