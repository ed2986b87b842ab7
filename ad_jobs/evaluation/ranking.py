"""How well one number separates two classes, from two histograms over the same ascending values.

A pixel of a heatmap, a softly masked pixel and an image in a bootstrap replicate differ only in what is counted.
Each becomes a pair of histograms (normal weight and abnormal weight per value), and every metric is a function of that
pair: millions of pixels are never held, and a replicate is not sorted.
It is exact when a bin holds one value.
When a bin holds several, their order inside it is lost and they count as ties: the AUROC is then off by at most half of
the share of (normal, abnormal) pairs that meet in a bin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class Histograms(NamedTuple):
    """Weights per value, values ascending; both arrays are float64 [bins] and non-negative."""

    normal: FloatArray
    abnormal: FloatArray

    def has_both(self) -> bool:
        """True if there is something to tell apart."""
        return bool(self.normal.sum() > 0 and self.abnormal.sum() > 0)


def check(scores: npt.ArrayLike, anomalous: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Scores as float64 [n] and their labels as bool [n].

    Raises:
        ValueError: the arrays differ in length, or a score is not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(anomalous).astype(bool)
    if values.ndim != 1 or labels.shape != values.shape:
        raise ValueError(f"Scores and labels must be 1-D and of one length, got {values.shape} and {labels.shape}")
    if not np.isfinite(values).all():
        raise ValueError("Scores must be finite")
    return values, labels


def histograms(scores: npt.ArrayLike, anomalous: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Histograms:
    """The exact pair of histograms of scored images: one bin per distinct score.

    Args:
        scores: finite numbers [n], larger = more abnormal.
        anomalous: 0/1 or bool [n].
        weights: how often each image counts [n]; once each if left out.

    Raises:
        ValueError: the arrays differ in length, or a score is not finite.
    """
    values, labels = check(scores, anomalous)
    counts = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    distinct, place = np.unique(values, return_inverse=True)
    return count(place, labels, counts, distinct.size)


def count(place: npt.NDArray[np.intp], anomalous: npt.NDArray[np.bool_], weights: FloatArray, bins: int) -> Histograms:
    """The pair of histograms when the bin of each image is known already [n]."""
    normal = np.bincount(place, weights * ~anomalous, minlength=bins)
    abnormal = np.bincount(place, weights * anomalous, minlength=bins)
    return Histograms(normal.astype(np.float64), abnormal.astype(np.float64))


def auroc(h: Histograms) -> float | None:
    """Area under the ROC curve, ties counted half; None if a class is empty."""
    if not h.has_both():
        return None
    below = np.cumsum(h.normal) - h.normal
    pairs = (h.abnormal * (below + h.normal / 2)).sum()
    return _unit(pairs / (h.normal.sum() * h.abnormal.sum()))


def partial_auroc(h: Histograms, max_fpr: float) -> float | None:
    """Area under the ROC curve up to `max_fpr`, divided by `max_fpr`: 1 is perfect; None if a class is empty.

    With every abnormal region's weight summing to one, this is AUPRO (see pixel_metrics).
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must be above 0 and at most 1, got {max_fpr}")
    if not h.has_both():
        return None
    fpr, tpr = roc(h)
    inside = fpr <= max_fpr
    limit = np.interp(max_fpr, fpr, tpr) if not inside.all() else tpr[-1]
    x = np.append(fpr[inside], max_fpr)
    y = np.append(tpr[inside], limit)
    return _unit((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / max_fpr)


def average_precision(h: Histograms) -> float | None:
    """Sum over thresholds of (step in recall) x precision, not interpolated; None if a class is empty."""
    if not h.has_both():
        return None
    hits, alarms = _detections(h)
    recall, precision = hits / h.abnormal.sum(), hits / (hits + alarms)
    return _unit((np.diff(recall, prepend=0.0) * precision).sum())


def f1_max(h: Histograms) -> float | None:
    """The best F1 over all thresholds (abnormal when score >= threshold), an oracle; or None."""
    if not h.has_both():
        return None
    hits, alarms = _detections(h)
    return _unit((2 * hits / (hits + alarms + h.abnormal.sum())).max())


def accuracy_max(h: Histograms) -> float | None:
    """The best accuracy over all observed scores as thresholds, an oracle; None if a class is empty."""
    if not h.has_both():
        return None
    hits, alarms = _detections(h)
    return _unit((hits + h.normal.sum() - alarms).max() / (h.normal.sum() + h.abnormal.sum()))


def accuracy_zero_fn(h: Histograms) -> float | None:
    """The accuracy at threshold = lowest abnormal score, ties to abnormal; None if a class is empty."""
    if not h.has_both():
        return None
    threshold = int(np.flatnonzero(h.abnormal)[0])
    correct = h.abnormal.sum() + h.normal[:threshold].sum()
    return _unit(correct / (h.normal.sum() + h.abnormal.sum()))


def roc(h: Histograms) -> tuple[FloatArray, FloatArray]:
    """(false, true positive rate) from (0, 0) to (1, 1), one point per occupied bin. Needs both classes."""
    hits, alarms = _detections(h)
    fpr = np.concatenate([[0.0], alarms / h.normal.sum()])
    tpr = np.concatenate([[0.0], hits / h.abnormal.sum()])
    return fpr, tpr


def _detections(h: Histograms) -> tuple[FloatArray, FloatArray]:
    """(abnormal weight, normal weight) at or above each occupied bin, highest first.

    Empty bins are left out: they are not observed scores, and the ones above the highest score would stand for a
    threshold that flags nothing.
    """
    occupied = (h.normal + h.abnormal) > 0
    return np.cumsum(h.abnormal[occupied][::-1]), np.cumsum(h.normal[occupied][::-1])


def _unit(value: float) -> float:
    """The value as a plain float, without the last-digit overshoot of a floating-point sum."""
    return float(min(max(value, 0.0), 1.0))
