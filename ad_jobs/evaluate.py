"""evaluate: a finished run against labels, into RUN/evaluation.json."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from ad_jobs.errors import JobError, UsageError
from ad_jobs.evaluation.evaluation_file import write_evaluation
from ad_jobs.evaluation.judge import judge
from ad_jobs.evaluation.labels import read_labels
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import RunRecord, read_record
from cluster import storage

_COLUMNS = ["uri", "frame", "status", "score", "threshold", "flagged", "heatmap", "model_id", "run_id"]


def evaluate(
    run: str, labels: str, *, seed: int = 0, bootstrap: int = 1000, allow_unfinished: bool = False
) -> dict[str, Any]:
    """What the run is worth on labelled images; also written to RUN/evaluation.json.

    At the top level stand the first model's counts and metrics, each metric as {"value", "low", "high"}; `models` holds
    the same for the other models by model_id.
    Pixel metrics need masks and a heatmap of every labelled image; without they are null and `pixel_note` says why.

    Args:
        run: folder or s3:// URI of the run.
        labels: CSV with image, anomalous and, if known, mask, frame, group.
        seed: of the bootstrap.
        bootstrap: replicates; pixel metrics take at most 200 of them; 0 for no intervals.
        allow_unfinished: judge what an unfinished run has so far.

    Raises:
        UsageError: not a finished run, a labels file that cannot be used, or labels of other images.
        JobError: a heatmap is damaged.
    """
    if bootstrap < 0:
        raise UsageError("The number of bootstrap replicates must not be negative.", bootstrap, "0 turns it off.")
    run_uri = storage.absolute(run)
    read = read_labels(labels)
    record = read_record(run_uri, allow_unfinished)
    rows = read_scores(run_uri, columns=_COLUMNS, allow_unfinished=allow_unfinished)
    results = {
        model_id: judge(run_uri, read, rows[rows["model_id"] == model_id], threshold, seed=seed, bootstrap=bootstrap)
        for model_id, threshold in _models(record, rows)
    }
    first, *others = results
    evaluation: dict[str, Any] = {
        "version": 1,
        "run_id": record.run_id if record else str(rows["run_id"].iloc[0]),
        "model_id": first,
        "labels": {"uri": read.uri, "sha256": read.sha256, "rows": len(read.table)},
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "unfinished": record is None,
        "seed": seed,
        "bootstrap": bootstrap,
        "resampled_by": "group" if read.table["group"].notna().any() else "image",
        **results[first],
        "models": {model_id: results[model_id] for model_id in others},
    }
    write_evaluation(run_uri, evaluation)
    return evaluation


def _models(record: RunRecord | None, rows: pd.DataFrame) -> list[tuple[str, float]]:
    """Model ids and thresholds, in the order of the run's command line where it is known."""
    if record is not None:
        return [(model.model_id, model.threshold) for model in record.models]
    scored = rows.dropna(subset=["threshold"]).drop_duplicates("model_id")
    if scored.empty:
        raise JobError("The run has no scored image yet.", "Wait for the scan, or look at its error codes.")
    return [(str(m), float(t)) for m, t in zip(scored["model_id"], scored["threshold"], strict=True)]
