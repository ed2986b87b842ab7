"""Metrics of image scores, each with a bootstrap interval.

`f1_max`, `accuracy_max` and `accuracy_zero_fn` choose their threshold on the very images they judge. They are
oracles: a ceiling to compare detectors by, not what a deployed threshold reaches.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from ad_jobs.evaluation import ranking
from ad_jobs.evaluation.ranking import Histograms
from ad_jobs.scoring.calibration import clopper_pearson

CONFIDENCE = 0.95


class Estimate(TypedDict):
    """A metric and its 95 % interval; None where undefined, its bounds None where there is no interval."""

    value: float | None
    low: float | None
    high: float | None


IMAGE_METRICS: dict[str, Callable[[Histograms], float | None]] = {
    "image_auroc": ranking.auroc,
    "image_ap": ranking.average_precision,
    "f1_max": ranking.f1_max,
    "accuracy_max": ranking.accuracy_max,
    "accuracy_zero_fn": ranking.accuracy_zero_fn,
}


def image_auroc(scores: npt.ArrayLike, anomalous: npt.ArrayLike) -> float | None:
    """Area under the ROC curve of image scores [n] against labels 0/1 [n]; None with one class only."""
    return ranking.auroc(ranking.histograms(scores, anomalous))


def image_ap(scores: npt.ArrayLike, anomalous: npt.ArrayLike) -> float | None:
    """Average precision of image scores [n] against labels 0/1 [n]; None with one class only."""
    return ranking.average_precision(ranking.histograms(scores, anomalous))


def f1_max(scores: npt.ArrayLike, anomalous: npt.ArrayLike) -> float | None:
    """The best F1 over all thresholds, an oracle; None with one class only."""
    return ranking.f1_max(ranking.histograms(scores, anomalous))


def accuracy_max(scores: npt.ArrayLike, anomalous: npt.ArrayLike) -> float | None:
    """The best accuracy over all observed scores as thresholds, an oracle; None with one class only."""
    return ranking.accuracy_max(ranking.histograms(scores, anomalous))


def accuracy_zero_fn(scores: npt.ArrayLike, anomalous: npt.ArrayLike) -> float | None:
    """The accuracy at threshold = lowest anomalous score, ties to anomalous; None with one class only."""
    return ranking.accuracy_zero_fn(ranking.histograms(scores, anomalous))


def image_metrics(
    scores: npt.ArrayLike,
    anomalous: npt.ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    bootstrap: int = 1000,
) -> dict[str, Estimate]:
    """Every metric of IMAGE_METRICS with its percentile bootstrap interval.

    Args:
        scores: finite numbers [n].
        anomalous: 0/1 [n].
        groups: which images belong together (one patient, one board); whole groups are drawn. Each image
            is its own group if left out.
        seed: the same seed gives the same intervals.
        bootstrap: replicates; 0 for no intervals.
    """
    values = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(anomalous).astype(bool)
    found = ranking.histograms(values, labels)
    drawn: dict[str, list[float]] = {name: [] for name in IMAGE_METRICS}
    if found.has_both() and bootstrap:
        _, place = np.unique(values, return_inverse=True)
        bins = found.normal.size
        for weights in resample(labels, groups, seed=seed, replicates=bootstrap):
            replicate = ranking.count(place, labels, weights, bins)
            for name, metric in IMAGE_METRICS.items():
                value = metric(replicate)
                if value is not None:
                    drawn[name].append(value)
    return {name: estimate(metric(found), drawn[name]) for name, metric in IMAGE_METRICS.items()}


def resample(
    anomalous: npt.NDArray[np.bool_], groups: Sequence[str] | None, *, seed: int, replicates: int
) -> Iterator[npt.NDArray[np.float64]]:
    """How often each image counts in each replicate, [n] per replicate.

    Stratified: groups of normal images only, of anomalous images only, and of both are drawn apart, each with
    replacement, so that every replicate holds both classes. Nothing is yielded when a class has fewer than
    two groups: drawing from one group always gives that group, and the interval would claim a certainty
    nobody has.
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


def estimate(value: float | None, drawn: Sequence[float]) -> Estimate:
    """The metric with the percentile interval of its replicates, widened where need be to hold the value.

    A maximum over thresholds is biased upwards in every replicate, so on few images its percentiles can miss
    the value.
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
