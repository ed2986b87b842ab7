"""From grey values to [0, 1]: the functions of a window, in float64, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ad_jobs.images.policy import PERCENTILES, Window

Grey = npt.NDArray[np.float64]


def linear(values: Grey, center: float, width: float) -> Grey:
    """The default LINEAR function of PS3.3 C.11.2.1.2.1, for width >= 1; output range [0, 1]."""
    if width == 1:  # the formula's denominator is 0: a threshold, Note 5 of the same clause
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


def lookup(values: Grey, first: int, table: npt.NDArray[Any]) -> Grey:
    """Entries of a LUT whose first entry belongs to `first`; values beyond either end take that end's entry.

    PS3.3 C.11.1.1.1 and C.11.2.1.1, the second value of LUT Descriptor.
    """
    # A rescale may leave fractions: the entry of the nearest stored value.
    index = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return table[index].astype(np.float64)


def each(stored: npt.NDArray[Any], function: Callable[[Grey], npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """`function` of every stored value, which must treat each by itself: the same numbers as of all of them at once.

    Integers of up to 16 bits have fewer values than a picture has pixels: it is worked out once a value, and looked up.
    """
    if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2 and stored.size:
        low, high = int(stored.min()), int(stored.max())
        if high - low < stored.size:
            table = function(np.arange(low, high + 1, dtype=np.float64))
            return table[stored if low == 0 else stored.astype(np.intp) - low]
    return function(stored.astype(np.float64))


def percentile_range(values: Grey, ignored: npt.NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """The low and high percentile of `values`; their minimum and maximum where the percentiles coincide.

    `ignored` marks pixels that are no part of the picture, such as DICOM's pixel padding.
    """
    kept = values if ignored is None or ignored.all() else values[~ignored]
    low, high = np.percentile(kept, PERCENTILES)
    if not high > low:  # mostly background: the few pixels that differ are all there is to see
        low, high = kept.min(), kept.max()
    return float(low), float(high)


def float_range(values: Grey) -> tuple[float, float]:
    """The full scale of floats, which have no stored bits: [0, 1] if it holds them, else theirs."""
    low, high = float(values.min()), float(values.max())
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)


def apply(
    values: Grey, window: Window, own: Callable[[Grey], Grey], ignored: npt.NDArray[np.bool_] | None = None
) -> Grey:
    """Values in modality units under `window`, in [0, 1]; `own` is what the object itself asks for."""
    if window == "dicom":
        return own(values)
    if window == "percentile":
        return spread(values, *percentile_range(values, ignored))
    return spread(values, *window)
