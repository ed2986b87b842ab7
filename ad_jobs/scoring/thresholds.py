"""Where a threshold is set: from scores of held-out images, at a stated rate, with an interval to trust it by.

Nothing here ever sees a test set: the rule of every method's specification.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ad_jobs.errors import UsageError
from ad_jobs.schema import is_flagged

CONFIDENCE = 0.95
# Below this many held-out normals an empirical 99th percentile is the maximum: use mean + 3 s.d. there.
SMALL = 100


class Threshold(BaseModel):
    """A threshold with the rule that set it and the rate it shows on the images it was set from.

    `rate` is the share of these images on the wrong side of the threshold (normals flagged for `max_fpr`,
    anomalous ones missed for `max_fnr`), with its Clopper-Pearson interval of 95 %: what one may expect of new
    images of the same kind.
    With fewer than 100 normals of which none may be flagged the threshold is their mean + 3 s.d., if that is higher
    than all of them, as `method` says.
    """

    # A threshold of NaN would flag nothing, and say nothing of it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    threshold: float
    rule: Literal["max_fpr", "max_fnr"]
    target: float
    method: Literal["quantile", "mean_plus_3_sd", "lowest_anomalous"]
    rate: float
    rate_low: float
    rate_high: float


def clopper_pearson(hits: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact binomial interval of a rate of `hits` in `n` trials; (0, 1) where there is no trial."""
    if n == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    # Imported here: who only reads a calibration, as every worker of a scan, does without.
    from scipy.special import betaincinv

    low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1 - tail))
    return low, high


def threshold_for_fpr(normal: NDArray[np.float32], max_fpr: float) -> Threshold:
    """The lowest threshold that flags at most a share `max_fpr` of these held-out normals.

    Flagged is score > threshold.

    With fewer than 100 of them, none of which may be flagged, it is mean + 3 standard deviations if that is higher: a
    quantile beyond the sample's last image is no estimate.
    """
    if len(normal) == 0:
        raise UsageError(
            "A threshold for a false-positive rate needs normal images.", "none that decode", "Name some with --normal."
        )
    ordered = np.sort(normal.astype(np.float64))
    allowed = int(np.floor(max_fpr * len(ordered) + 1e-9))
    threshold = (
        float(ordered[len(ordered) - 1 - allowed])
        if allowed < len(ordered)
        else float(np.nextafter(np.float32(ordered[0]), np.float32(-np.inf)))
    )
    method: Literal["quantile", "mean_plus_3_sd"] = "quantile"
    spread = float(ordered.mean() + 3 * ordered.std(ddof=1)) if len(ordered) > 1 else threshold
    if len(ordered) < SMALL and allowed == 0 and spread > threshold:
        threshold, method = spread, "mean_plus_3_sd"
    threshold = _float32(threshold)
    hits = int(is_flagged(normal, threshold).sum())
    low, high = clopper_pearson(hits, len(normal))
    return Threshold(
        threshold=threshold,
        rule="max_fpr",
        target=max_fpr,
        method=method,
        rate=hits / len(normal),
        rate_low=low,
        rate_high=high,
    )


def threshold_for_fnr(anomalous: NDArray[np.float32], max_fnr: float, margin: float = 0.0) -> Threshold:
    """The highest threshold that misses at most a share `max_fnr` of these anomalous images.

    `margin` lowers it by that share of its height: none missed of a sample still allows some beyond it, as the
    interval says.
    """
    if len(anomalous) == 0:
        raise UsageError(
            "A threshold for a false-negative rate needs anomalous images.",
            "none that decode",
            "Name some with --anomalous.",
        )
    ordered = np.sort(anomalous.astype(np.float32))
    allowed = min(int(np.floor(max_fnr * len(ordered) + 1e-9)), len(ordered) - 1)
    # Flagged is strictly above: the threshold lies just below the lowest score that must be flagged.
    threshold = float(np.nextafter(ordered[allowed] - np.float32(margin) * abs(ordered[allowed]), np.float32(-np.inf)))
    misses = int((~is_flagged(ordered, threshold)).sum())
    low, high = clopper_pearson(misses, len(ordered))
    return Threshold(
        threshold=threshold,
        rule="max_fnr",
        target=max_fnr,
        method="lowest_anomalous",
        rate=misses / len(ordered),
        rate_low=low,
        rate_high=high,
    )


def _float32(value: float) -> float:
    """The float32 at or above `value`: the table stores thresholds and scores in float32."""
    rounded = np.float32(value)
    return float(rounded if float(rounded) >= value else np.nextafter(rounded, np.float32(np.inf)))
