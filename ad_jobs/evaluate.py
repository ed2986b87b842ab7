"""evaluate: a finished run, or one of its decisions, against labels, into RUN/evaluation.json."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Any, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ad_jobs.archive.manifest import read_parts
from ad_jobs.archive.manifest_record import manifest_info
from ad_jobs.deciding.decided_table import DecidedTable
from ad_jobs.deciding.record import read_decision
from ad_jobs.deciding.units import units_of
from ad_jobs.errors import RetroscanError, UsageError
from ad_jobs.evaluation.evaluation_file import evaluation_uri, write_evaluation
from ad_jobs.evaluation.judge import drawn_with, judge
from ad_jobs.evaluation.labels import hidden, join, labelled_rows, read_labels
from ad_jobs.evaluation.reviewed import review_labels
from ad_jobs.evaluation.stacks import LabelledStacks
from ad_jobs.evaluation.subgroups import attributes, subgroups
from ad_jobs.results.run import RunRecord, read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.run_specs import EvaluateSpec
from ad_jobs.specs import REVIEWS, UnitLevel, takes
from cluster import storage


@takes(EvaluateSpec)
def evaluate(spec: EvaluateSpec) -> dict[str, Any]:
    """What the run is worth on labelled images; also written to RUN/evaluation.json.

    With a decision, what that is worth; written beside it, as RUN/decisions/ID.evaluation.json.
    At the level `study` or `series` these are what is counted: one is anomalous if any of its labelled frames is,
    scores as its highest frame and is flagged if any frame is; the file is then evaluation.study.json, or
    ID.evaluation.study.json.
    With `reviews` for labels they are the verdicts of reviewers, where these agree.
    Labels of a run with hashed identifiers name images by their hashes, or, with the key, as they are.

    At the top level stand the first model's counts and metrics, each metric as {"value", "low", "high"}; `models` holds
    the same for the other models by model_id.
    `subgroups` has what was found and missed of images, by modality, maker, site, age band and sex (see there).
    Pixel metrics need masks and a heatmap of every labelled image; without they are null and `pixel_note` says why.
    They take at most 200 of the bootstrap's replicates.

    Raises:
        UsageError: not a finished run, a labels file that cannot be used, labels of other images, or no such decision.
        JobError: a heatmap is damaged.
    """
    record = read_record(spec.run)
    labels, disputed = review_labels(spec.run) if spec.labels == REVIEWS else (read_labels(spec.labels), None)
    if spec.identifiers_key is not None:
        labels = hidden(labels, record, spec.identifiers_key)
    decision = None if spec.decision is None else read_decision(spec.run, record, spec.decision)
    table = ScoreTable(spec.run, record)
    thresholds: dict[str, float | None] = {model.model_id: model.threshold for model in record.models}
    if decision is not None:
        _demand_level(decision, spec.level)
        table = DecidedTable(table, decision)
        thresholds = {model["model_id"]: model["threshold"] for model in decision["models"]}
    rows = labelled_rows(table, labels)
    draws = {"seed": spec.seed, "bootstrap": spec.bootstrap}
    if spec.level == "image":
        objects = record.counts.objects
        joined = {one.model_id: join(labels, rows[rows["model_id"] == one.model_id], objects) for one in record.models}
        parted = attributes(table, labels)
        parts = {name: subgroups(one.table, parted, drawn_with(one.table), **draws) for name, one in joined.items()}
    else:
        stacks = LabelledStacks(table, labels, spec.level)
        joined = {one.model_id: stacks.joined(one.model_id) for one in record.models}
        parts = {}
    judged = {
        model.model_id: {"kind": model.kind}
        | judge(spec.run, joined[model.model_id], thresholds[model.model_id], **draws)
        | {"subgroups": parts.get(model.model_id, [])}
        | ({} if spec.level == "image" else {"pixel_note": "Pixels are judged of images: leave --level out."})
        for model in record.models
    }
    first, *others = judged
    hashed = record.config.get("identifiers") == "hashed"
    evaluation: dict[str, Any] = {
        "version": 1,
        "run_id": record.run_id,
        "model_id": first,
        # What was judged; null where it is what the run itself flagged.
        "decision": spec.decision,
        # What counts as one: an image (or a labelled frame of it), a series, a study.
        "level": spec.level,
        # The same in words.
        "units": units_of(spec.level, table),
        # A run that hides where things lie hides this, too; the digest tells which labels they were.
        "labels": {
            "uri": None if hashed else labels.uri,
            "sha256": labels.sha256,
            "rows": len(labels.table),
            # Of verdicts: frames of which reviewers say both, which are left out; null of a labels file.
            "disputed": disputed,
            "not_selected": _not_selected(record, labels.table["uri"][~labels.table["uri"].isin(rows["uri"])]),
        },
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        # Part of the file's format: only finished runs are judged.
        "unfinished": False,
        "seed": spec.seed,
        "bootstrap": spec.bootstrap,
        "resampled_by": "group" if labels.table["group"].notna().any() else spec.level,
        **judged[first],
        "models": {model_id: judged[model_id] for model_id in others},
    }
    write_evaluation(evaluation_uri(spec.run, spec.decision, spec.level), evaluation)
    return evaluation


def _demand_level(decision: dict[str, Any], level: UnitLevel) -> None:
    """Raise UsageError where a decision of whole studies, or series, would be judged by parts of them."""
    sizes = get_args(UnitLevel)
    if sizes.index(decision["level"]) > sizes.index(level):
        raise UsageError(
            "A decision is judged by what it flags, or by more.",
            f"--level {level} of decision {decision['decision_id']}, which flags {decision['level']}",
            f"Give --level {decision['level']}.",
        )


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
