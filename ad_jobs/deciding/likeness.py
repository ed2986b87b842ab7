"""Do the held-out normals look like the run's? What p-values promise holds for a normal image that is one of theirs.

A run holds abnormal images, too, so that its high scores tell nothing.
Its low ones do: below the median of the held-out normals should lie half of the run's normals, spread as theirs are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ad_jobs.deciding.p_values import Reference

# Where more than half of a run seems abnormal, it is not like what it is judged by, whatever is true of its images.
LEAST_NORMAL = 0.5
# By how much more than chance the two may differ below the median.
DISTANCE, SIGNIFICANCE = 0.15, 0.001
# Levels below the median that tell how scores are spread.
FEW = 8


class Likeness(NamedTuple):
    """How the low scores of a run compare with those of the held-out normals.

    `normal_share` is Storey's estimate of the share of normals (2002, A direct approach to false discovery rates, at
    one half): twice the share of rows below the held-out median, or below the next score under equal ones.
    Above 1 the run scores lower than the held-out normals, and fewer are flagged than was promised.
    `doubt` is the probability of so few of them if half of the run were normal; `distance` is Kolmogorov and Smirnov's
    between the two below that median, in [0, 1], `significance` its p-value.
    Both take all rows for independent; None is what too few scores, or too many equal ones, do not tell.
    """

    normal_share: float | None
    doubt: float | None
    distance: float | None
    significance: float | None

    @property
    def doubtful(self) -> str | None:
        """Why what is promised may not hold; None where nothing speaks against it."""
        if self.normal_share is not None and self.doubt is not None and self.doubt < SIGNIFICANCE:
            return (
                f"only {self.normal_share:.0%} of the run seem to be like the held-out normals: "
                "most of it is abnormal, or it is another kind of images"
            )
        if self.distance is None or self.significance is None:
            return None
        if self.distance > DISTANCE and self.significance < SIGNIFICANCE:
            return f"its low scores are spread otherwise than those of the held-out normals (KS {self.distance:.2f})"
        return None


class Bulk(NamedTuple):
    """The rows below the median of the held-out normals, or below the next score under equal ones.

    Of `rows` in all `found` are there, and of the held-out normals `held_out`; `above` of these are not.
    `deviation` is the largest difference of the two distributions there, in [-1, 1], below 0 where the rows lie higher,
    and `distance` its size, Kolmogorov and Smirnov's; None where too few scores, or too many equal ones, do not tell.
    """

    rows: int
    found: int
    held_out: int
    above: int
    deviation: float | None

    @property
    def distance(self) -> float | None:
        return None if self.deviation is None else abs(self.deviation)

    @property
    def normal_share(self) -> float:
        """Storey's estimate of the share of normals among the rows; above 1 where they score lower."""
        return self.found / self.rows * (self.held_out + self.above) / self.held_out


def bulk(counts: NDArray[np.int64], reference: Reference) -> Bulk | None:
    """From the number of rows of each level of the held-out normals; None without rows, or scores that differ."""
    # Equal scores are never told apart: only where a level ends is it known how many should lie below.
    apart, rows = np.flatnonzero(reference.apart()), int(counts.sum())
    last = int(apart[np.searchsorted(apart, (reference.n + 1) // 2 - 1)])
    low, held_out = counts[last + 1 :], reference.n - last
    found = int(low.sum())
    if not rows or not held_out:
        return None
    ends = apart[apart > last] - last
    deviation = None
    if found and len(ends) >= FEW:
        # Counted from the median downwards, where rows that lie higher come first.
        ahead = np.cumsum(low)[ends - 1] / found - ends / held_out
        deviation = -float(ahead[np.abs(ahead).argmax()])
    return Bulk(rows, found, held_out, last + 1, deviation)


def likeness(counts: NDArray[np.int64], reference: Reference) -> Likeness:
    """From the number of rows of each level of the held-out normals."""
    from scipy.special import kolmogorov
    from scipy.stats import betabinom

    if (low := bulk(counts, reference)) is None:
        return Likeness(None, None, None, None)
    # How much of the population lies there is known from the held-out ones alone: a beta distribution.
    doubt = float(betabinom.cdf(low.found, int(np.ceil(LEAST_NORMAL * low.rows)), low.held_out, low.above))
    if low.distance is None:
        return Likeness(low.normal_share, doubt, None, None)
    pairs = low.found * low.held_out / (low.found + low.held_out)
    return Likeness(low.normal_share, doubt, low.distance, float(kolmogorov(np.sqrt(pairs) * low.distance)))
