"""Conformal p-values: how many held-out normals score as high as an image does.

Where a normal image and the held-out ones are exchangeable, as if drawn in any order from one population,
P(p <= a) <= a holds for it (Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World, ch. 2).
Benjamini and Hochberg's procedure over such p-values keeps its rate (Bates et al. 2023, Testing for outliers with
conformal p-values).
Nothing is assumed of the detector, nor of how scores are distributed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Reference:
    """Scores of `n` held-out normals, float32 or float64, against which others are ranked.

    There are n + 1 levels: a score's is the number of held-out normals that score as high or higher, 0 to n.
    """

    def __init__(self, normals: NDArray[Any]) -> None:
        if not len(normals):
            raise ValueError("a reference needs a score")
        self._ordered = np.sort(normals)

    @property
    def n(self) -> int:
        return len(self._ordered)

    @property
    def smallest(self) -> float:
        """The p of a score above all of theirs: no rule can tell apart what lies below it."""
        return 1 / (self.n + 1)

    def levels(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        """The level of each score, which are of the type of the held-out ones."""
        return self.n - np.searchsorted(self._ordered, scores.astype(self._ordered.dtype), side="left")

    def apart(self) -> NDArray[np.bool_]:
        """Of each level, whether scores of it and of those before are told from the others: not within equal ones."""
        found = np.ones(self.n + 1, bool)
        found[1:-1] = (self._ordered[1:] > self._ordered[:-1])[::-1]
        return found

    def p(self) -> NDArray[np.float64]:
        """p of each level: (1 + level) / (n + 1)."""
        return (1 + np.arange(self.n + 1)) / (self.n + 1)

    def threshold(self, level: int) -> float:
        """Above it lie the scores of this level and of those before: a score of the held-out normals."""
        # Of the last level are all: none is too low.
        return float(self._ordered[self.n - 1 - level]) if level < self.n else float("-inf")


def q_values(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """q of each level: the least rate of false discoveries at which its rows are flagged, in [0, 1].

    Benjamini & Hochberg 1995, sec. 3.1, step-up: of m rows with p_(1) <= ... <= p_(m) those up to the last with
    p_(k) <= k / m Q are flagged. Rows of one level have one p, so that levels are ordered and not rows.

    Args:
        counts: rows of each level, of all n + 1 of them.
    """
    return pooled_q_values([counts])[0]


def pooled_q_values(counts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    """As `q_values`, of rows that are ranked among several references: one procedure over the p of all of them.

    Args:
        counts: of each reference its rows by level.
    """
    rows = np.concatenate(counts)
    level = np.concatenate([np.arange(1, len(one) + 1) for one in counts])
    levels = np.concatenate([np.full(len(one), len(one)) for one in counts])
    # Equal fractions are equal numbers, whatever they are divided by: division is rounded correctly.
    distinct, place = np.unique(level / levels, return_inverse=True)
    up_to = np.cumsum(np.bincount(place, rows, minlength=len(distinct)).astype(np.int64))
    # m p / k by one division: what is equal to the rate that is asked for stays so.
    # Of levels before the first row nothing is flagged.
    of_each = np.where(up_to[place] > 0, (level * up_to[-1]) / (levels * np.maximum(up_to[place], 1)), np.inf)
    least = np.full(len(distinct), np.inf)
    np.minimum.at(least, place, of_each)
    found = np.minimum(np.minimum.accumulate(least[::-1])[::-1], 1.0)[place]
    return np.split(found, np.cumsum([len(one) for one in counts])[:-1])
