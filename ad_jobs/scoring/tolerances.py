"""By how much the scores of one model and one image may differ."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Of a score's scale, see `same_scores`: float32 convolutions differ by that between batch sizes, and between engines.
SCORE_TOLERANCE = 1e-5
# Of single places of a heatmap, as a share of the largest value of a batch's.
HEATMAP_SHARE = 2e-5
# By how much a score or a heatmap in reduced precision may differ from that in float32, as a share of the largest
# value of its kind.
# Measured on small models: MKD, SSM and Cycle-GAN stay within 0.5 %; FYD and PMAD, and MKD's gradient map, do not.
AMP_TOLERANCE = 0.02


def share_off(found: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """The largest difference, as a share of the largest exact value; not finite where what was found alone is not."""
    finite = np.isfinite(exact)
    if not finite.any():
        return 0.0
    off = np.abs(found[finite] - exact[finite]).max()
    return float(off / max(np.abs(exact[finite]).max(), np.finfo(np.float32).tiny))


def same_scores(again: ArrayLike, then: ArrayLike, scale: float) -> NDArray[np.bool_]:
    """Where scores are the same within SCORE_TOLERANCE of their `scale`, or absolute where that is below 1.

    The scale is a height that scores of the model reach, as its threshold.
    What a low score is off by is a share of that, since it is a difference of larger numbers.
    """
    return np.isclose(again, then, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE * max(1.0, scale), equal_nan=True)
