"""evaluate: a finished run, or one of its decisions, against labels, into RUN/evaluation.json."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ad_jobs.archive.manifest import read_parts
from ad_jobs.archive.manifest_record import manifest_info
from ad_jobs.deciding.record import KEY, evaluation_of, flags, read_decision
from ad_jobs.errors import RetroscanError
from ad_jobs.evaluation.evaluation_file import EVALUATION_FILE, write_evaluation
from ad_jobs.evaluation.judge import drawn_with, judge
from ad_jobs.evaluation.labels import join, labelled_rows, read_labels
from ad_jobs.evaluation.subgroups import attributes, subgroups
from ad_jobs.results.run import RunRecord, read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.specs import EvaluateSpec, takes
from cluster import storage


@takes(EvaluateSpec)
def evaluate(spec: EvaluateSpec) -> dict[str, Any]:
    """What the run is worth on labelled images; also written to RUN/evaluation.json.

    With a decision, what that is worth; written beside it, as RUN/decisions/ID.evaluation.json.

    At the top level stand the first model's counts and metrics, each metric as {"value", "low", "high"}; `models` holds
    the same for the other models by model_id.
    `subgroups` has what was found and missed by modality, maker, age band and sex (evaluation.subgroups).
    Pixel metrics need masks and a heatmap of every labelled image; without they are null and `pixel_note` says why.
    They take at most 200 of the bootstrap's replicates.

    Raises:
        UsageError: not a finished run, a labels file that cannot be used, labels of other images, or no such decision.
        JobError: a heatmap is damaged.
    """
    labels = read_labels(spec.labels)
    record = read_record(spec.run)
    decision = None if spec.decision is None else read_decision(spec.run, record, spec.decision)
    table = ScoreTable(spec.run, record)
    rows = labelled_rows(table, labels)
    thresholds: dict[str, float | None] = {model.model_id: model.threshold for model in record.models}
    if decision is not None:
        rows = _decided(spec.run, decision, rows)
        thresholds = {model["model_id"]: model["threshold"] for model in decision["models"]}
    parted = attributes(table, labels)
    draws = {"seed": spec.seed, "bootstrap": spec.bootstrap}
    judged = {}
    for model in record.models:
        joined = join(labels, rows[rows["model_id"] == model.model_id], record.counts.objects)
        judged[model.model_id] = (
            {"kind": model.kind}
            | judge(spec.run, joined, thresholds[model.model_id], **draws)
            | {"subgroups": subgroups(joined.table, parted, drawn_with(joined.table), **draws)}
        )
    first, *others = judged
    hashed = record.config.get("identifiers") == "hashed"
    evaluation: dict[str, Any] = {
        "version": 1,
        "run_id": record.run_id,
        "model_id": first,
        # What was judged; null where it is what the run itself flagged.
        "decision": spec.decision,
        # A run that hides where things lie hides this, too; the digest tells which labels they were.
        "labels": {
            "uri": None if hashed else labels.uri,
            "sha256": labels.sha256,
            "rows": len(labels.table),
            "not_selected": _not_selected(record, labels.table["uri"][~labels.table["uri"].isin(rows["uri"])]),
        },
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        # Part of the file's format: only finished runs are judged.
        "unfinished": False,
        "seed": spec.seed,
        "bootstrap": spec.bootstrap,
        "resampled_by": "group" if labels.table["group"].notna().any() else "image",
        **judged[first],
        "models": {model_id: judged[model_id] for model_id in others},
    }
    of_run = storage.join(spec.run, EVALUATION_FILE)
    write_evaluation(of_run if spec.decision is None else evaluation_of(spec.run, spec.decision), evaluation)
    return evaluation


def _decided(run_uri: str, decision: dict[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, flagged as the decision does."""
    of_each = flags(run_uri, decision["decision_id"], rows["object_id"].unique().tolist())
    key = pd.MultiIndex.from_frame(rows[list(KEY)])
    return rows.assign(flagged=of_each.reindex(key).to_numpy())


def _not_selected(record: RunRecord, missing: pd.Series[str]) -> int | None:
    """Of labels that the run knows nothing of, how many are of objects that its condition, or its parent, left out.

    None where that cannot be told: the manifest is hidden, gone, or another one by now.
    """
    if (record.manifest.where is None and record.parent is None) or missing.empty:
        return 0
    try:
        info = manifest_info(record.manifest.uri)
        if info.digest != record.manifest.digest:
            return None
        names = pa.array(missing, pa.string())
        listed = [pc.is_in(names, table["uri"].combine_chunks()) for table in read_parts(info, ["uri"])]
    except (RetroscanError, storage.StorageError):
        return None
    return int(pc.sum(functools.reduce(pc.or_, listed)).as_py())
