"""`retroscan show`: what a model or a run is, from what lies in its folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ad_jobs.deciding.record import decisions, read_decision
from ad_jobs.errors import JobError, UsageError
from ad_jobs.page.place import pages
from ad_jobs.results.run import RUN_FILE, read_record
from ad_jobs.reviewing.agreement import agreement
from ad_jobs.reviewing.verdicts import Verdict, files, read_files, standing
from ad_jobs.scoring.calibration import kept_calibrations
from ad_jobs.scoring.model_domain import DOMAIN
from ad_jobs.scoring.model_store import FittedModel, calibration_of, read_fitted
from ad_jobs.specs import ShowSpec, takes
from cluster import storage
from models.record import DETECTOR

T = TypeVar("T")


@takes(ShowSpec)
def show(spec: ShowSpec) -> dict[str, Any]:
    """JSON-able: a model or a run.

    `model` has its record, its calibration (None without a whole one), the ids of all that it keeps, and its domain;
    `run` its record, its decisions, its pages, and how many verdicts its reviewers gave and how far they agree.
    What else lies there and is damaged is told in `damaged`, a sentence each, and does not hide the rest.

    Raises:
        UsageError: neither a model nor a finished run, or a damaged one.
    """
    if storage.exists(storage.join(spec.folder, DETECTOR)):
        return {"model": _model(read_fitted(spec.folder))}
    if storage.exists(storage.join(spec.folder, RUN_FILE)):
        record = read_record(spec.folder)
        damaged: list[str] = []
        found = [
            whole
            for decision_id in decisions(spec.folder)
            if (whole := _or_told(damaged, partial(read_decision, spec.folder, record, decision_id))) is not None
        ]
        reviews = agreement(standing(_verdicts(spec.folder, damaged)))
        told = {"uri": spec.folder, **record.model_dump(mode="json"), "decisions": found, "reviews": reviews}
        return {"run": {**told, "pages": pages(spec.folder), "damaged": damaged}}
    raise UsageError(
        f"What is shown is a model, a folder with {DETECTOR}, or a finished run, a folder with {RUN_FILE}.",
        spec.folder,
        "Check the path.",
    )


def _verdicts(run_uri: str, damaged: list[str]) -> list[Verdict]:
    """The verdicts of a run, in the order in which they were noted."""
    names = files(run_uri)
    # Together they are read at the same time; one by one where a file is damaged.
    found = _or_told([], partial(read_files, run_uri, names))
    if found is None:
        whole = [_or_told(damaged, partial(read_files, run_uri, [name])) or [] for name in names]
        found = sorted((one for of_file in whole for one in of_file), key=lambda one: (one.noted_at, one.verdict_id))
    return found


def _or_told(damaged: list[str], read: Callable[[], T]) -> T | None:
    """What is read; None, and why it cannot be in `damaged`, where it is not whole."""
    try:
        return read()
    except (UsageError, JobError) as error:
        damaged.append(str(error))
        return None


def _model(model: FittedModel) -> dict[str, Any]:
    damaged: list[str] = []
    calibration = _or_told(damaged, partial(calibration_of, model))
    kept = kept_calibrations(model.uri)
    return {
        "uri": model.uri,
        **model.record,
        # Of the record and of what domain.json says now.
        "model_id": model.model_id,
        "calibration": None if calibration is None else calibration.model_dump(mode="json"),
        "calibration_id": None if calibration is None else calibration.id,
        "calibrations": [one.id for one in kept.calibrations],
        "damaged": damaged + [str(error) for error in kept.damaged.values()],
        "domain": {"file": storage.join(model.uri, DOMAIN), **model.domain.model_dump(mode="json")},
    }
