"""The decisions of a run as they lie beside it: decisions/ID.json and ID.parquet."""

from __future__ import annotations

import json
import re
from typing import Any

from ad_jobs.errors import UsageError
from ad_jobs.results.delivery import digest_of
from ad_jobs.results.run import RunRecord
from ad_jobs.results.seal import digest_holds
from cluster import storage

FOLDER = "decisions"
# Whose row it is.
KEY = ("object_id", "frame", "model_id")


def table_of(run_uri: str, decision_id: str) -> str:
    """Where the rows of a decision lie: deciding.table.DECISIONS, as Parquet."""
    return storage.join(run_uri, FOLDER, f"{decision_id}.parquet")


def record_of(run_uri: str, decision_id: str) -> str:
    """Where the record of a decision lies."""
    return storage.join(run_uri, FOLDER, f"{decision_id}.json")


def beside(run_uri: str, decision_id: str, name: str) -> str:
    """Where what belongs to a decision lies, as its evaluation: the run's own stays what it is."""
    return storage.join(run_uri, FOLDER, f"{decision_id}.{name}")


def decisions(run_uri: str) -> list[str]:
    """The ids of all decisions of a run."""
    folder = storage.join(run_uri, FOLDER)
    names = storage.list_names(folder) if storage.is_folder(folder) else []
    return sorted(name.removesuffix(".json") for name in names if re.fullmatch(r"[0-9a-f]{12}\.json", name))


def read_decision(run_uri: str, record: RunRecord, decision_id: str) -> dict[str, Any]:
    """The record of a decision of this very run, whose table is as it was written.

    Raises:
        UsageError: there is no such decision, it was changed, or is of another run in this folder.
    """
    uri = record_of(run_uri, decision_id)
    try:
        body = storage.read_bytes(uri)
    except storage.NotFound as error:
        raise UsageError(
            "A decision is one that the run has.",
            uri,
            f"It has {', '.join(decisions(run_uri)) or 'none'}; make one with: retroscan decide {run_uri} --fdr 0.1.",
        ) from error
    found = _record(body)
    what = None
    if found is None or not digest_holds(found):
        what = "its record was changed"
    elif found["run_digest"] != record.digest:
        what = f"it is of run {found['run_id']}, and this is {record.run_id}"
    elif digest_of(table_of(run_uri, decision_id)) != found["sha256"]:
        what = "its table is gone, or was changed"
    if found is None or what is not None:
        raise UsageError("A decision stays as it was made.", f"{uri}: {what}", "Remove it, and decide again.")
    return found


def _record(body: bytes) -> dict[str, Any] | None:
    """What a file says; None where it is no object of JSON."""
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
