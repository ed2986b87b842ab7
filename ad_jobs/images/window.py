"""From grey values to [0, 1]: the window of a pixel policy, and the functions of DICOM's, PS3.3 C.11.2.1.

All in float64, element by element.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ad_jobs.images.lut import Grey
from ad_jobs.images.policy import PERCENTILES, WHOLE_RANGE, Window


def apply(
    values: Grey, window: Window, own: Callable[[Grey], Grey], ignored: npt.NDArray[np.bool_] | None = None
) -> Grey:
    """Values in modality units under `window`, in [0, 1]; `own` is what the object itself asks for."""
    if window == "dicom":
        return own(values)
    if window == "percentile":
        return spread(values, *percentile_range(values, ignored))
    if window == WHOLE_RANGE:
        return spread(values, float(values.min()), float(values.max()))
    return spread(values, *window)


def linear(values: Grey, center: float, width: float) -> Grey:
    """The default LINEAR function of PS3.3 C.11.2.1.2.1, for width >= 1; output range [0, 1]."""
    # The formula's denominator is 0: a threshold, Note 5 of the same clause.
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def linear_exact(values: Grey, center: float, width: float) -> Grey:
    """The LINEAR_EXACT function of PS3.3 C.11.2.1.3.2, for width > 0; output range [0, 1]."""
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def sigmoid(values: Grey, center: float, width: float) -> Grey:
    """The SIGMOID function of PS3.3 C.11.2.1.3.1, for width > 0; output range (0, 1)."""
    # exp overflows a float64 beyond 709; at 500 the result is 0 or 1 to the last bit already.
    return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -500.0, 500.0)))


def spread(values: Grey, low: float, high: float) -> Grey:
    """Values from `low` = 0 to `high` = 1, clipped; all 0 where the range has no width."""
    if not high > low:
        return np.zeros_like(values)
    scaled = values - low
    scaled /= high - low
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def percentile_range(values: Grey, ignored: npt.NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """The low and high percentile of `values`; their minimum and maximum where the percentiles coincide.

    `ignored` marks pixels that are no part of the picture, such as DICOM's pixel padding.
    """
    kept = values if ignored is None or ignored.all() else values[~ignored]
    low, high = np.percentile(kept, PERCENTILES)
    # Mostly background: the few pixels that differ are all there is to see.
    if not high > low:
        low, high = kept.min(), kept.max()
    return float(low), float(high)


def float_range(values: Grey) -> tuple[float, float]:
    """The full scale of floats, which have no stored bits: [0, 1] if it holds them, else theirs."""
    low, high = float(values.min()), float(values.max())
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)
