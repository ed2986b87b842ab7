"""How certain a metric is: bootstrap replicates, what they make of its value, and exact intervals of rates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from ad_jobs.scoring.thresholds import CONFIDENCE, clopper_pearson


class Estimate(TypedDict):
    """A metric and its 95 % interval; None where undefined, its bounds None where there is no interval."""

    value: float | None
    low: float | None
    high: float | None


def resample(
    anomalous: npt.NDArray[np.bool_], groups: Sequence[str] | None, *, seed: int, replicates: int
) -> Iterator[npt.NDArray[np.float64]]:
    """How often each image counts in each replicate, [n] per replicate.

    Stratified: groups of normal images only, of anomalous images only, and of both are drawn apart, each with
    replacement, so that every replicate holds both classes.
    Nothing is yielded when a class has fewer than two groups: drawing from one group always gives that group, and the
    interval would claim a certainty nobody has.
    """
    n = anomalous.size
    names = np.arange(n) if groups is None else np.asarray(groups, dtype=str)
    _, unit = np.unique(names, return_inverse=True)
    units = int(unit.max()) + 1 if n else 0
    has_anomalous = np.bincount(unit, anomalous, minlength=units) > 0
    has_normal = np.bincount(unit, ~anomalous, minlength=units) > 0
    if min(has_anomalous.sum(), has_normal.sum()) < 2:
        return
    kind = has_anomalous * 1 + has_normal * 2
    strata = [np.flatnonzero(kind == k) for k in (1, 2, 3) if (kind == k).any()]
    rng = np.random.default_rng(seed)
    for _ in range(replicates):
        times = np.zeros(units)
        for stratum in strata:
            draw = rng.integers(0, stratum.size, stratum.size)
            times[stratum] = np.bincount(draw, minlength=stratum.size)
        yield times[unit]


def poisson_weights(group: str, seed: int, replicates: int) -> npt.NDArray[np.float64]:
    """How often a group counts in each replicate [replicates], decided by its name and the seed alone."""
    digest = hashlib.sha256(f"{seed}\n{group}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    return rng.poisson(1.0, replicates).astype(np.float64)


def estimate(value: float | None, drawn: Sequence[float]) -> Estimate:
    """The metric with the percentile interval of its replicates, widened where need be to hold the value.

    A maximum over thresholds is biased upwards in every replicate, so on few images its percentiles can miss the value.
    """
    if value is None or len(drawn) < 2:
        return Estimate(value=value, low=None, high=None)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.asarray(drawn), [tail, 100 - tail])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))


def rate(count: int, total: int) -> Estimate:
    """A share and its exact (Clopper-Pearson) 95 % interval, the images taken as independent; or None."""
    if total == 0:
        return Estimate(value=None, low=None, high=None)
    low, high = clopper_pearson(count, total, CONFIDENCE)
    return Estimate(value=count / total, low=low, high=high)
