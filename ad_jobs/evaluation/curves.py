"""The curves that a report draws of labelled scores, thin enough for a page."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CURVE_POINTS = 200
_HISTOGRAM_BINS = 40


def score_curves(scores: FloatArray, anomalous: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Scores by class, and the ROC and precision-recall curves where both classes are there; {} without scores."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    if not scores.size:
        return {}
    edges = np.histogram_bin_edges(scores, bins=_HISTOGRAM_BINS)
    curves: dict[str, Any] = {
        "scores": {
            "edges": edges.tolist(),
            "normal": np.histogram(scores[~anomalous], edges)[0].tolist(),
            "anomalous": np.histogram(scores[anomalous], edges)[0].tolist(),
        }
    }
    if anomalous.any() and not anomalous.all():
        fpr, tpr, _ = roc_curve(anomalous, scores, drop_intermediate=False)
        curves["roc"] = dict(zip(("fpr", "tpr"), thin(fpr, tpr), strict=True))
        # With recall rising, and without the point (0, 1) at which nothing is flagged.
        precision, recall, _ = precision_recall_curve(anomalous, scores)
        curves["pr"] = dict(zip(("recall", "precision"), thin(recall[-2::-1], precision[-2::-1]), strict=True))
    return curves


def thin(x: FloatArray, y: FloatArray, points: int = CURVE_POINTS) -> tuple[list[float], list[float]]:
    """At most `points` points of a curve in the unit square, even along its length, both ends kept."""
    if x.size > points:
        length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
        wanted = np.linspace(0.0, length[-1], points)
        kept = np.unique(np.clip(np.searchsorted(length, wanted), 0, x.size - 1))
        kept[0], kept[-1] = 0, x.size - 1
        x, y = x[kept], y[kept]
    return [round(float(v), 6) for v in x], [round(float(v), 6) for v in y]
