"""What the sections of the report show: a run's scores, its worth on labels, its pictures, and what was not scored."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pandas as pd

from ad_jobs.evaluation.evaluation_file import Found
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.page import charts, gallery, texts
from ad_jobs.page.colours import css_gradient
from ad_jobs.results.run import ModelRef, RunRecord
from ad_jobs.schema import SCORED
from ad_jobs.scoring.calibration import judged_by

_NARROW_PX = 360
_EXAMPLES = 3
# Frames shown under every model side by side.
_COMPARED = 5
_PARTS_SHOWN = 20


def sections(run_uri: str, record: RunRecord, rows: pd.DataFrame, found: Found, top: int) -> dict[str, Any]:
    """What page.html.j2 names, of a run's record, its score table and its evaluation."""
    limits = Limits.model_validate(record.config.get("limits") or {})
    models = [
        _model(run_uri, model, rows[rows["model_id"] == model.model_id], found.evaluation, limits, top)
        for model in record.models
    ]
    compared = gallery.side_by_side(run_uri, rows, record.models, limits, _COMPARED) if len(models) > 1 else []
    scored_rows = sum(model["rows"] for model in models)
    counts = record.counts
    config = json.dumps(record.config, sort_keys=True, default=str)
    return {
        "scored_rows": scored_rows,
        "unit": _unit(scored_rows, record),
        "record": record,
        "balanced": counts.scored + counts.failed + counts.skipped == record.manifest.objects,
        "models": models,
        "compared": compared,
        "evaluation": found.evaluation,
        "stale_evaluation": found.stale,
        "failures": _failures(rows),
        "config": json.dumps(record.config, indent=2, sort_keys=True, default=str),
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "parts_shown": _PARTS_SHOWN,
        "gradient": css_gradient(),
    }


def _model(
    run_uri: str, model: ModelRef, rows: pd.DataFrame, evaluation: dict[str, Any] | None, limits: Limits, top: int
) -> dict[str, Any]:
    """What the page shows of one model: its scores, its worth on labels, its pictures."""
    scored = rows[rows["status"] == SCORED]
    scores = scored["score"].to_numpy(dtype=np.float64)
    bars = charts.bin_scores(scores, model.threshold) if scores.size else None
    judged = None
    if evaluation is not None:
        judged = evaluation if evaluation["model_id"] == model.model_id else evaluation["models"].get(model.model_id)
    return {
        "ref": model,
        "rows": len(scored),
        "flagged": int(scored["flagged"].sum()),
        "quantiles": [float(q) for q in np.quantile(scores, [0, 0.5, 0.99, 1])] if scores.size else None,
        "beyond": bars.beyond if bars else 0,
        "histogram": charts.score_histogram(bars, model.threshold) if bars else None,
        "histogram_narrow": charts.score_histogram(bars, model.threshold, width=_NARROW_PX) if bars else None,
        "calibration": judged_by(run_uri, model),
        "judged": _judged(judged) if judged else None,
        "cards": gallery.cards(run_uri, rows, PixelPolicy.model_validate(model.policy), limits, top),
    }


def _judged(judged: dict[str, Any]) -> dict[str, Any]:
    """One model's part of evaluation.json with its charts and the metrics' names in words."""
    curves, at = judged["curves"], judged["at_threshold"]
    fpr, fnr = at["fpr"]["value"], at["fnr"]["value"]
    shown: dict[str, Any] = {"numbers": judged, "at": at, "roc": None, "pr": None, "classes": None}
    if "scores" in curves:
        shown["classes"] = charts.class_histogram(**curves["scores"], threshold=at["threshold"])
    if "roc" in curves and fpr is not None and fnr is not None:
        shown["roc"] = charts.curve(
            curves["roc"]["fpr"],
            curves["roc"]["tpr"],
            x_label="false positive rate",
            y_label="true positive rate",
            title="ROC curve of the labelled images",
            reference=((0, 0), (1, 1)),
            point=(fpr, 1 - fnr),
        )
        flagged = at["true_positive"] + at["false_positive"]
        base = judged["n_anomalous"] / (judged["n_normal"] + judged["n_anomalous"])
        shown["pr"] = charts.curve(
            curves["pr"]["recall"],
            curves["pr"]["precision"],
            x_label="recall",
            y_label="precision",
            title="Precision-recall curve of the labelled images",
            reference=((0, base), (1, base)),
            point=(1 - fnr, at["true_positive"] / flagged) if flagged else None,
        )
    shown["metrics"] = [_metric(text, judged[key]) for key, text in texts.METRICS.items()]
    return shown


def _metric(text: texts.Metric, found: dict[str, Any]) -> dict[str, Any]:
    """A metric in words, its value and interval, and their picture."""
    return {**text._asdict(), **found, "picture": charts.interval(**found) if found["value"] is not None else None}


def _failures(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Objects that failed or were skipped, by error code, most frequent first; each object counts once."""
    bad = rows[rows["status"] != SCORED].drop_duplicates("object_id")
    return [
        {
            "code": str(code),
            "status": group["status"].iloc[0],
            "count": len(group),
            "what": texts.ERRORS.get(str(code), ""),
            "examples": group[["uri", "error_detail"]].head(_EXAMPLES).to_dict("records"),
        }
        for code, group in sorted(bad.groupby("error_code"), key=lambda item: (-len(item[1]), str(item[0])))
    ]


def _unit(scored_rows: int, record: RunRecord) -> str:
    """What a scored row of the table is: an image, a frame of one, or either under one of several models."""
    if len(record.models) > 1:
        return "rows"
    return "images" if scored_rows == record.counts.scored else "frames"
