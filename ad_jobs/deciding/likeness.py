"""Do the held-out normals look like the run's? What p-values promise holds for a normal image that is one of theirs.

A run holds abnormal images, too, so that its high scores tell nothing.
Its low ones do: below the median of the held-out normals should lie half of the run's normals, spread as theirs are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Where more than half of a run seems abnormal, it is not like what it is judged by, whatever is true of its images.
LEAST_NORMAL = 0.5
# By how much more than chance the two may differ below the median.
DISTANCE, SIGNIFICANCE = 0.15, 0.001


class Likeness(NamedTuple):
    """How the low scores of a run compare with those of the held-out normals.

    `normal_share` is Storey's estimate of the share of normals (2002, A direct approach to false discovery rates, at
    one half): twice the share of rows below the held-out median.
    Above 1 the run scores lower than the held-out normals, and fewer are flagged than was promised.
    `distance` is Kolmogorov and Smirnov's between the two below that median, in [0, 1], `significance` its p-value,
    which takes all rows for independent; both None where either has too few.
    """

    normal_share: float
    distance: float | None
    significance: float | None

    @property
    def doubtful(self) -> str | None:
        """Why what is promised may not hold; None where nothing speaks against it."""
        if self.normal_share < LEAST_NORMAL:
            return (
                f"only {self.normal_share:.0%} of the run seem to be like the held-out normals: "
                "most of it is abnormal, or it is another kind of images"
            )
        if self.distance is None or self.significance is None:
            return None
        if self.distance > DISTANCE and self.significance < SIGNIFICANCE:
            return f"its low scores are spread otherwise than those of the held-out normals (KS {self.distance:.2f})"
        return None


def likeness(counts: NDArray[np.int64]) -> Likeness:
    """From the number of rows of each level, p_values.Reference's: n + 1 levels, the lowest scores last."""
    from scipy.special import kolmogorov

    n = len(counts) - 1
    # Levels above it have p > 1/2.
    half = (n + 1) // 2
    low = counts[half:]
    rows, expected = int(low.sum()), len(low)
    normal_share = float(rows / max(int(counts.sum()), 1) * (n + 1) / expected)
    if not rows or expected < 8:
        return Likeness(normal_share, None, None)
    found = np.cumsum(low) / rows
    distance = float(np.abs(found - np.arange(1, expected + 1) / expected).max())
    # Of the levels in between there is one fewer held-out score.
    pairs = rows * expected / (rows + expected)
    return Likeness(normal_share, distance, float(kolmogorov(np.sqrt(pairs) * distance)))
