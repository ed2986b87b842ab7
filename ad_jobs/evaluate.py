"""evaluate: a finished run against labels, into RUN/evaluation.json."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ad_jobs.evaluation.evaluation_file import write_evaluation
from ad_jobs.evaluation.judge import judge
from ad_jobs.evaluation.labels import join, labelled_rows, read_labels
from ad_jobs.results.run import read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.specs import EvaluateSpec, takes


@takes(EvaluateSpec)
def evaluate(spec: EvaluateSpec) -> dict[str, Any]:
    """What the run is worth on labelled images; also written to RUN/evaluation.json.

    At the top level stand the first model's counts and metrics, each metric as {"value", "low", "high"}; `models` holds
    the same for the other models by model_id.
    Pixel metrics need masks and a heatmap of every labelled image; without they are null and `pixel_note` says why.
    They take at most 200 of the bootstrap's replicates.

    Raises:
        UsageError: not a finished run, a labels file that cannot be used, or labels of other images.
        JobError: a heatmap is damaged.
    """
    labels = read_labels(spec.labels)
    record = read_record(spec.run)
    rows = labelled_rows(ScoreTable(spec.run, record), labels)
    judged = {
        model.model_id: judge(
            spec.run,
            join(labels, rows[rows["model_id"] == model.model_id], record.counts.objects),
            model.threshold,
            seed=spec.seed,
            bootstrap=spec.bootstrap,
        )
        for model in record.models
    }
    first, *others = judged
    hashed = record.config.get("identifiers") == "hashed"
    evaluation: dict[str, Any] = {
        "version": 1,
        "run_id": record.run_id,
        "model_id": first,
        # A run that hides where things lie hides this, too; the digest tells which labels they were.
        "labels": {"uri": None if hashed else labels.uri, "sha256": labels.sha256, "rows": len(labels.table)},
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        # Part of the file's format: only finished runs are judged.
        "unfinished": False,
        "seed": spec.seed,
        "bootstrap": spec.bootstrap,
        "resampled_by": "group" if labels.table["group"].notna().any() else "image",
        **judged[first],
        "models": {model_id: judged[model_id] for model_id in others},
    }
    write_evaluation(spec.run, evaluation)
    return evaluation
