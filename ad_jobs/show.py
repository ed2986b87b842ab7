"""`retroscan show`: what a model or a run is, from what lies in its folder."""

from __future__ import annotations

from typing import Any

from ad_jobs.deciding.record import decisions, read_decision
from ad_jobs.errors import UsageError
from ad_jobs.results.run import RUN_FILE, read_record
from ad_jobs.reviewing.agreement import agreement
from ad_jobs.reviewing.verdicts import files, read_files, standing
from ad_jobs.scoring.model_store import DOMAIN, FittedModel, calibration_of, kept_calibrations, read_fitted
from ad_jobs.specs import ShowSpec, takes
from cluster import storage
from models.record import DETECTOR


@takes(ShowSpec)
def show(spec: ShowSpec) -> dict[str, Any]:
    """JSON-able: a model or a run.

    `model` has its record, its calibration (None without one), the ids of all that it keeps, and its domain; `run` its
    record, its decisions, and how many verdicts its reviewers gave and how far they agree.

    Raises:
        UsageError: neither a model nor a finished run, or a damaged one; a decision that was changed.
        JobError: a file of verdicts is damaged.
    """
    if storage.exists(storage.join(spec.folder, DETECTOR)):
        return {"model": _model(read_fitted(spec.folder))}
    if storage.exists(storage.join(spec.folder, RUN_FILE)):
        record = read_record(spec.folder)
        found = [read_decision(spec.folder, record, decision_id) for decision_id in decisions(spec.folder)]
        reviews = agreement(standing(read_files(spec.folder, files(spec.folder))))
        told = {"uri": spec.folder, **record.model_dump(mode="json"), "decisions": found, "reviews": reviews}
        return {"run": told}
    raise UsageError(
        f"What is shown is a model, a folder with {DETECTOR}, or a finished run, a folder with {RUN_FILE}.",
        spec.folder,
        "Check the path.",
    )


def _model(model: FittedModel) -> dict[str, Any]:
    calibration = calibration_of(model)
    return {
        "uri": model.uri,
        **model.record,
        # Of the record and of what domain.json says now.
        "model_id": model.model_id,
        "calibration": None if calibration is None else calibration.model_dump(mode="json"),
        "calibration_id": None if calibration is None else calibration.id,
        "calibrations": [one.id for one in kept_calibrations(model.uri)],
        "domain": {"file": storage.join(model.uri, DOMAIN), **model.domain.model_dump(mode="json")},
    }
