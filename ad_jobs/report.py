"""report: a finished run as one self-contained HTML page, RUN/report/index.html.

The page asks nobody for anything: styles and script stand in it, pictures are data URIs, and its content
security policy forbids the rest. Whatever comes from the archive (names, URIs, details) is escaped by the
template.
"""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from pydantic import ValidationError

from ad_jobs.evaluate import EVALUATION_FILE
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.page import charts, gallery, texts
from ad_jobs.page.colours import css_gradient
from ad_jobs.results.read import read_run, read_scores
from ad_jobs.results.run import ModelRef, RunRecord
from ad_jobs.scoring.calibration import Calibration
from cluster import storage

REPORT_FILE = "report/index.html"
TOP = 24
_EXAMPLES = 3
_COMPARED = 5  # frames shown under every model side by side
_PARTS_SHOWN = 20
_COLUMNS = [
    "object_id",
    "uri",
    "frame",
    "status",
    "error_code",
    "error_detail",
    "score",
    "flagged",
    "heatmap",
    "model_id",
    "content_sha256",
    "modality",
]
_CALIBRATION_FILE = "calibration.json"


def report(run: str, *, top: int = TOP) -> str:
    """The URI of the page just written for a finished run.

    Args:
        run: folder or s3:// URI of the run; its evaluation.json is shown if there is one.
        top: how many of the highest-scored frames of each model are shown as pictures.

    Raises:
        UsageError: not a run, or an unfinished one.
        JobError: a part of the score table is missing or damaged.
    """
    run_uri = storage.absolute(run)
    record = read_run(run_uri)
    rows = read_scores(run_uri, columns=_COLUMNS)
    evaluation, stale = _evaluation(run_uri, record)
    limits = Limits.model_validate(record.config.get("limits") or {})
    models = [
        _model(run_uri, model, rows[rows["model_id"] == model.model_id], evaluation, limits, top)
        for model in record.models
    ]
    scored_rows = sum(model["rows"] for model in models)
    page = _render(
        {
            "scored_rows": scored_rows,
            "unit": _unit(scored_rows, record),
            "record": record,
            "duration": _duration(record.ended_at - record.started_at),
            "balanced": record.counts.scored + record.counts.failed + record.counts.skipped == record.manifest.objects,
            "models": models,
            "compared": gallery.side_by_side(run_uri, rows, record.models, limits, _COMPARED)
            if len(models) > 1
            else [],
            "evaluation": evaluation,
            "stale_evaluation": stale,
            "failures": _failures(rows),
            "config": json.dumps(record.config, indent=2, sort_keys=True, default=str),
            "config_sha256": hashlib.sha256(
                json.dumps(record.config, sort_keys=True, default=str).encode()
            ).hexdigest(),
            "parts_shown": _PARTS_SHOWN,
            "gradient": css_gradient(),
        }
    )
    uri = storage.join(run_uri, REPORT_FILE)
    storage.write_bytes(uri, page.encode())
    return uri


def _render(context: dict[str, Any]) -> str:
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "number": _number,
        "share": _share,
        "metric": _metric,
        "percent": _percent,
        "moment": _moment,
        "size": _size,
    }
    script = (here / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        context,
        style=Markup((here / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
    )


def _model(
    run_uri: str, model: ModelRef, rows: pd.DataFrame, evaluation: dict[str, Any] | None, limits: Limits, top: int
) -> dict[str, Any]:
    """What the page shows of one model: its scores, its worth on labels, its pictures."""
    scored = rows[rows["status"] == "scored"]
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
        "histogram_narrow": charts.score_histogram(bars, model.threshold, width=360) if bars else None,
        "calibration": _calibration(model),
        "judged": _judged(judged) if judged else None,
        "cards": gallery.cards(run_uri, rows, PixelPolicy.model_validate(model.policy), limits, top),
    }


def _evaluation(run_uri: str, record: RunRecord) -> tuple[dict[str, Any] | None, bool]:
    """(evaluation.json if it is there and about this run, whether there is one about another)."""
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(storage.join(run_uri, EVALUATION_FILE)))
    except storage.NotFound:
        return None, False
    if found.get("run_id") != record.run_id or found.get("unfinished"):
        return None, True
    return found, False


def _calibration(model: ModelRef) -> Calibration | None:
    """How the model's threshold was set, if its calibration is still the one the run was judged by."""
    try:
        body = storage.read_bytes(storage.join(model.uri, _CALIBRATION_FILE))
    except storage.StorageError:
        return None
    if hashlib.sha256(body).hexdigest() != model.calibration_sha256:
        return None
    try:
        return Calibration.model_validate_json(body)
    except ValidationError:
        return None


def _judged(judged: dict[str, Any]) -> dict[str, Any]:
    """One model's part of evaluation.json with its charts and the metrics' names in words."""
    curves, at = judged["curves"], judged["at_threshold"]
    point = at["fpr"]["value"], at["fnr"]["value"]
    shown: dict[str, Any] = {"numbers": judged, "at": at, "roc": None, "pr": None, "classes": None}
    labelled = judged["n_normal"] + judged["n_anomalous"]
    if "scores" in curves:
        shown["classes"] = charts.class_histogram(**curves["scores"], threshold=at["threshold"])
    if "roc" in curves and None not in point:
        shown["roc"] = charts.curve(
            curves["roc"]["fpr"],
            curves["roc"]["tpr"],
            x_label="false positive rate",
            y_label="true positive rate",
            title="ROC curve of the labelled images",
            reference=((0, 0), (1, 1)),
            point=(point[0], 1 - point[1]),
        )
        flagged = at["true_positive"] + at["false_positive"]
        base = judged["n_anomalous"] / labelled
        shown["pr"] = charts.curve(
            curves["pr"]["recall"],
            curves["pr"]["precision"],
            x_label="recall",
            y_label="precision",
            title="Precision-recall curve of the labelled images",
            reference=((0, base), (1, base)),
            point=(1 - point[1], at["true_positive"] / flagged) if flagged else None,
        )
    shown["metrics"] = [
        {
            "name": text.name,
            "what": text.what,
            "oracle": text.oracle,
            **judged[key],
            "picture": charts.interval(**judged[key]) if judged[key]["value"] is not None else None,
        }
        for key, text in texts.METRICS.items()
    ]
    return shown


def _failures(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Objects that failed or were skipped, by error code, most frequent first; each object counts once."""
    bad = rows[rows["status"] != "scored"].drop_duplicates("object_id")
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


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _metric(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _share(value: float, whole: float) -> str:
    if not whole:
        return "–"
    share = value / whole
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"


def _moment(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S} {value.tzname() or ''}".strip()


def _size(value: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value = round(value / 1000)
    return f"{value:,} TB"


def _duration(elapsed: Any) -> str:
    seconds = int(elapsed.total_seconds())
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds % 60:02d} s"
