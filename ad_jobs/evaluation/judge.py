"""What one model's scores and heatmaps are worth on labelled images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ad_jobs.evaluation.curves import score_curves
from ad_jobs.evaluation.heatmaps import read_heatmaps, select
from ad_jobs.evaluation.image_metrics import image_metrics
from ad_jobs.evaluation.intervals import Estimate, rate
from ad_jobs.evaluation.labels import MISSING, Joined
from ad_jobs.evaluation.masks import read_mask
from ad_jobs.evaluation.pixel_metrics import PIXEL_METRICS, REPLICATES, PixelEvaluation
from ad_jobs.schema import FAILED, SCORED, SKIPPED
from cluster.counting import counted


def judge(run_uri: str, joined: Joined, threshold: float | None, *, seed: int, bootstrap: int) -> dict[str, Any]:
    """Counts, metrics with intervals, rates at the run's threshold, and curves: a model's part of evaluation.json.

    Args:
        run_uri: folder or s3:// URI of the run.
        joined: the labels beside what the run found under the model.
        threshold: what the rows were flagged by; None where they were by their rank.
        seed: of the bootstrap.
        bootstrap: replicates; pixel metrics take at most 200 of them; 0 for no intervals.

    Raises:
        UsageError: a mask that cannot be used.
        JobError: a heatmap is damaged.
    """
    status = joined.table["status"]
    judged = joined.table[status == SCORED].reset_index(drop=True)
    anomalous = judged["anomalous"].to_numpy(dtype=bool)
    scores = judged["score"].to_numpy(dtype=np.float64)
    groups = drawn_with(judged)
    pixels, note, pixel_roc = _pixel_metrics(run_uri, judged, groups, seed, bootstrap)
    return {
        "n_labelled": len(joined.table),
        "n_normal": int((~anomalous).sum()),
        "n_anomalous": int(anomalous.sum()),
        "n_failed": int((status == FAILED).sum()),
        "n_skipped": int((status == SKIPPED).sum()),
        "n_missing": int((status == MISSING).sum()),
        "n_unlabelled": joined.unlabelled,
        **image_metrics(scores, anomalous, groups, seed=seed, bootstrap=bootstrap),
        **pixels,
        "pixel_note": note,
        "at_threshold": _at_threshold(threshold, judged["flagged"].to_numpy(dtype=bool), anomalous)
        | {"tpr_at_5_percent_fpr": _could_find(scores, anomalous)},
        "curves": score_curves(scores, anomalous) | ({"pixel_roc": pixel_roc} if pixel_roc else {}),
    }


def drawn_with(judged: pd.DataFrame) -> list[str]:
    """What each image is drawn with: its group, else its object: frames of one object belong together."""
    return [
        f"image {uri}" if group is None or pd.isna(group) else f"group {group}"
        for uri, group in zip(judged["uri"], judged["group"], strict=True)
    ]


def _could_find(scores: npt.NDArray[np.float64], anomalous: npt.NDArray[np.bool_]) -> float | None:
    """The share of anomalous images above all but 5 % of these normal ones: what a threshold by labels would find."""
    normal = np.sort(scores[~anomalous])
    if not normal.size or not anomalous.any():
        return None
    return float((scores[anomalous] > normal[len(normal) - 1 - int(0.05 * len(normal))]).mean())


def _at_threshold(
    threshold: float | None, flagged: npt.NDArray[np.bool_], anomalous: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """The confusion counts at the run's own threshold, and the two error rates with exact intervals."""
    counts = {
        "true_positive": int((flagged & anomalous).sum()),
        "false_positive": int((flagged & ~anomalous).sum()),
        "true_negative": int((~flagged & ~anomalous).sum()),
        "false_negative": int((~flagged & anomalous).sum()),
    }
    return {
        "threshold": threshold,
        # None where nothing was flagged, or what was went by its rank.
        "rule": None if threshold is None else "score > threshold",
        **counts,
        "fpr": rate(counts["false_positive"], int((~anomalous).sum())),
        "fnr": rate(counts["false_negative"], int(anomalous.sum())),
    }


def _pixel_metrics(
    run_uri: str, judged: pd.DataFrame, groups: list[str], seed: int, bootstrap: int
) -> tuple[dict[str, Estimate], str | None, dict[str, list[float]] | None]:
    """(metrics of PIXEL_METRICS, why they are null or what was left out, the pixel ROC)."""
    selected = select(judged, groups)
    if selected.why_none is not None:
        return dict.fromkeys(PIXEL_METRICS, Estimate(value=None, low=None, high=None)), selected.why_none, None
    evaluation = PixelEvaluation(seed=seed, replicates=min(REPLICATES, bootstrap))
    for heatmap, values, geometry in read_heatmaps(run_uri, selected.heatmaps):
        # Padding is not part of the picture: nothing there can be right or wrong.
        top, left = geometry.top, geometry.left
        box = np.s_[top : top + geometry.height, left : left + geometry.width]
        mask = None
        if heatmap.mask is not None:
            mask = geometry.mask_to_input(read_mask(heatmap.mask, geometry.rows, geometry.columns))[box]
        evaluation.update(values[box], mask, heatmap.group)
    curve = evaluation.roc()
    roc = {"fpr": curve[0], "tpr": curve[1]} if curve else None
    left_out = selected.left_out
    note = (
        f"{counted(left_out, 'anomalous image')} without a mask: left out of the pixel metrics." if left_out else None
    )
    return evaluation.result(), note, roc
