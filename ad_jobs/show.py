"""`retroscan show`: what a model or a run is, from what lies in its folder."""

from __future__ import annotations

from typing import Any

from ad_jobs.errors import UsageError
from ad_jobs.results.run import RUN_FILE, read_record
from ad_jobs.scoring.model_store import DOMAIN, FittedModel, calibration_of, read_fitted
from ad_jobs.specs import ShowSpec, takes
from cluster import storage
from models.record import DETECTOR


@takes(ShowSpec)
def show(spec: ShowSpec) -> dict[str, Any]:
    """JSON-able: `model` with its record, its calibration (None without one) and its domain, or `run` with its record.

    Raises:
        UsageError: neither a model nor a finished run, or a damaged one.
    """
    if storage.exists(storage.join(spec.folder, DETECTOR)):
        return {"model": _model(read_fitted(spec.folder))}
    if storage.exists(storage.join(spec.folder, RUN_FILE)):
        return {"run": {"uri": spec.folder, **read_record(spec.folder).model_dump(mode="json")}}
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
        "domain": {"file": storage.join(model.uri, DOMAIN), **model.domain.model_dump(mode="json")},
    }
