"""What the sections of the report show: a run's scores, its worth on labels, its pictures, and what was not scored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ad_jobs.deciding.units import FOLDERS, UNITS
from ad_jobs.errors import SKIP_CODES, ErrorCode
from ad_jobs.evaluation.evaluation_file import Found
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.page import charts, gallery, texts
from ad_jobs.page.colours import css_gradient
from ad_jobs.page.pictures import Pictures
from ad_jobs.results.quantiles import quantiles
from ad_jobs.results.run import ModelRef, RunRecord
from ad_jobs.results.score_table import ORDER, ScoreTable, equal
from ad_jobs.schema import FAILED, SCORED, SKIPPED
from ad_jobs.scoring.calibration import judged_by
from ad_jobs.values import tiles_text

if TYPE_CHECKING:
    from ad_jobs.verifying.run_archive import RunArchive

_NARROW_PX = 360
_EXAMPLES = 3
# Frames shown under every model side by side.
_COMPARED = 5
_PARTS_SHOWN = 20
_OF_FAILURES = [*ORDER, "uri", "error_code", "error_detail"]
# Cards of what was missed.
_MISSED = 24
# What the sections show of a table.
COLUMNS = list(dict.fromkeys([*gallery.COLUMNS, *_OF_FAILURES, "threshold"]))


class Decided(NamedTuple):
    """What a page shows of a decision: its id, in words, its thresholds and its most suspicious rows by model.

    A decision about studies or series has their word, and by model how many are flagged, of how many.
    """

    decision_id: str
    text: str
    thresholds: dict[str, float | None]
    ranks: dict[str, pa.Table]
    stacks: str | None = None
    counts: Mapping[str, tuple[int, int]] = MappingProxyType({})


def sections(
    table: ScoreTable,
    found: Found,
    top: int,
    *,
    decided: Decided | None = None,
    pictures: Pictures | None = None,
    truth: gallery.Truth = gallery.UNKNOWN,
    stacks: Sequence[dict[str, Any]] = (),
    archive: RunArchive | None = None,
    of_pictures: bool = False,
) -> dict[str, Any]:
    """What page.html.j2 names, of a run's score table with its record, and of its evaluation.

    Args:
        table: the run's, as the decision flags it where there is one.
        found: the evaluation of the run, or of the decision.
        top: cards of each model.
        decided: the decision that is shown.
        pictures: where they go; into the page by default.
        truth: labels of the evaluation.
        stacks: the most suspicious studies, a row each (deciding.run_stacks.RUN_STACKS).
        archive: of a run with hashed names, whose pictures are to be shown.
        of_pictures: the objects are ordinary pictures, which lie in folders; else studies are spoken of.
    """
    record = table.record
    limits = Limits.model_validate(record.config.get("limits") or {})
    counted = _scored(table)
    pictures = pictures or Pictures()
    made = gallery.Gallery(table, limits, pictures, truth, archive)
    models = [
        _model(made, model, counted.get(model.model_id, (0, 0)), found.evaluation, top, decided)
        for model in record.models
    ]
    compared = gallery.side_by_side(made, _COMPARED) if len(models) > 1 else []
    names = gallery.names_of([*compared, *(model[kind] for model in models for kind in ("cards", "missed"))])
    scored_rows = sum(model["rows"] for model in models)
    counts = record.counts
    config = json.dumps(record.config, sort_keys=True, default=str)
    flagged = sum(flagged for _, flagged in counted.values()) if decided else record.counts.flagged
    unit = _unit(scored_rows, record)
    return {
        "headline": _stacks_headline(decided, models) or f"{flagged:,} of {scored_rows:,} scored {unit} flagged",
        "names": names,
        "scored_rows": scored_rows,
        "unit": unit,
        "record": record,
        "balanced": counts.scored + counts.failed + counts.skipped == record.manifest.objects,
        "models": models,
        "compared": compared,
        "decision": None if decided is None else decided.text,
        "decision_id": None if decided is None else decided.decision_id,
        "stacks_word": None if decided is None else decided.stacks,
        "flagged": flagged,
        "pictures_beside": pictures.beside is not None,
        "stacks": stacks,
        "of_pictures": of_pictures,
        "gathered_in": FOLDERS if of_pictures else UNITS["study"],
        "evaluation": found.evaluation,
        "stale_evaluation": found.stale,
        "failures": _failures(table),
        "config": json.dumps(record.config, indent=2, sort_keys=True, default=str),
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "parts_shown": _PARTS_SHOWN,
        "gradient": css_gradient(),
    }


def _scored(table: ScoreTable) -> dict[str, tuple[int, int]]:
    """By model_id, how many rows were scored, and how many of them are flagged."""
    found = table.query(
        "SELECT model_id, count(*) AS rows, count(*) FILTER (WHERE flagged) AS flagged "
        "FROM scores WHERE status = ? GROUP BY model_id",
        ["model_id", "status", "flagged"],
        [SCORED],
    )
    return {row["model_id"]: (row["rows"], row["flagged"]) for row in found.to_pylist()}


def _model(
    made: gallery.Gallery,
    model: ModelRef,
    counted: tuple[int, int],
    evaluation: dict[str, Any] | None,
    top: int,
    decided: Decided | None,
) -> dict[str, Any]:
    """What the page shows of one model: its scores, its worth on labels, its pictures."""
    table = made.table
    threshold = model.threshold if decided is None else decided.thresholds[model.model_id]
    # Where a decision has none, that of the run is an edge between bars, and no line.
    line = model.threshold if threshold is None else threshold

    def scores() -> Iterator[npt.NDArray[np.float32]]:
        for batch in table.batches(["model_id", "status", "score"]):
            wanted = pc.and_(equal(batch, "model_id", model.model_id), equal(batch, "status", SCORED))
            yield batch["score"].filter(wanted).to_numpy(zero_copy_only=False)

    rows, flagged = counted
    bars, shown = None, None
    if (found := quantiles(scores, [0, 0.001, 0.5, 0.99, 0.999, 1])) is not None:
        lowest, low, median, high_percent, high, highest = found
        bars = charts.bin_scores((x.astype(np.float64) for x in scores()), [lowest, low, high, highest], line)
        shown = [lowest, median, high_percent, highest]
    judged = None
    if evaluation is not None:
        judged = evaluation if evaluation["model_id"] == model.model_id else evaluation["models"].get(model.model_id)
    return {
        "ref": model,
        "tiles": tiles_text(PixelPolicy.model_validate(model.policy)),
        "rows": rows,
        "flagged": flagged,
        "stacks": None if decided is None or decided.stacks is None else decided.counts[model.model_id],
        "quantiles": shown,
        "beyond": bars.beyond if bars else 0,
        "histogram": charts.score_histogram(bars, threshold) if bars else None,
        "histogram_narrow": charts.score_histogram(bars, threshold, width=_NARROW_PX) if bars else None,
        "calibration": judged_by(table.uri, model),
        "judged": _judged(judged) if judged else None,
        "threshold": threshold,
        "cards": made.cards(model, top, None if decided is None else decided.ranks[model.model_id]),
        "missed": made.missed(model, _MISSED) if made.truth.of else [],
    }


def _judged(judged: dict[str, Any]) -> dict[str, Any]:
    """One model's part of evaluation.json with its charts and the metrics' names in words."""
    curves, at = judged["curves"], judged["at_threshold"]
    fpr, fnr = at["fpr"]["value"], at["fnr"]["value"]
    shown: dict[str, Any] = {"numbers": judged, "at": at, "roc": None, "pr": None, "classes": None}
    if "scores" in curves:
        line = np.inf if at["threshold"] is None else at["threshold"]
        shown["classes"] = charts.class_histogram(**curves["scores"], threshold=line)
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
    # What has no value, as of pixels without masks, is no row.
    shown["metrics"] = [
        _metric(text, judged[key]) for key, text in texts.METRICS.items() if judged[key]["value"] is not None
    ]
    return shown


def _metric(text: texts.Metric, found: dict[str, Any]) -> dict[str, Any]:
    """A metric in words, its value and interval, and their picture."""
    return {**text._asdict(), **found, "picture": charts.interval(**found)}


def _failures(table: ScoreTable) -> list[dict[str, Any]]:
    """Objects that failed or were skipped, by error code, most frequent first; each object counts once."""
    kept = pd.DataFrame(columns=_OF_FAILURES)
    fields: Counter[str] = Counter()
    for batch in table.batches(_OF_FAILURES):
        fields.update(_fields(batch))
        kept = pd.concat([kept, batch.filter(batch["error_code"].is_valid()).to_pandas()]).sort_values(list(ORDER))
        # Of each code its first objects.
        kept = kept.drop_duplicates(["error_code", "object_id"]).groupby("error_code").head(_EXAMPLES)
    return [
        {
            "code": code,
            "status": SKIPPED if code in SKIP_CODES else FAILED,
            "count": count,
            "what": texts.ERRORS.get(code, ""),
            "fields": dict(fields.most_common()) if code == ErrorCode.OUT_OF_DOMAIN else {},
            "examples": kept.loc[kept["error_code"] == code, ["uri", "error_detail"]].to_dict("records"),
        }
        for code, count in sorted(table.record.counts.by_code.items(), key=lambda item: (-item[1], item[0]))
    ]


def _fields(batch: pa.RecordBatch) -> Counter[str]:
    """By which fields of a model's domain rows are outside of it, and how many; a row may be by several."""
    reasons = batch.filter(equal(batch, "error_code", ErrorCode.OUT_OF_DOMAIN))["error_detail"].value_counts()
    found: Counter[str] = Counter()
    for reason in reasons.to_pylist():
        for one in (reason["values"] or "").split("; "):
            # As `Domain.refusal` writes them.
            found[one.partition(" ")[0].rstrip(",")] += reason["counts"]
    return found


def _stacks_headline(decided: Decided | None, models: Sequence[dict[str, Any]]) -> str | None:
    """What a decision about studies or series flagged of them; None of any other."""
    if decided is None or decided.stacks is None:
        return None
    several = len(models) > 1
    flagged = [f"{model['stacks'][0]:,}" + (f" by {model['ref'].kind}" if several else "") for model in models]
    return f"{', '.join(flagged)} of {max(model['stacks'][1] for model in models):,} {decided.stacks} flagged"


def _unit(scored_rows: int, record: RunRecord) -> str:
    """What a scored row of the table is: an image, a frame of one, or either under one of several models."""
    if len(record.models) > 1:
        return "rows"
    return "images" if scored_rows == record.counts.scored else "frames"
