"""RUN/evaluation.json: what `evaluate` writes, and a report shows if it is about the same run."""

from __future__ import annotations

import json
import logging
from typing import Any, NamedTuple

from ad_jobs.deciding.record import beside
from ad_jobs.specs import UnitLevel
from cluster import storage

log = logging.getLogger("retroscan.evaluate")

EVALUATION_FILE = "evaluation.json"


def evaluation_uri(run_uri: str, decision_id: str | None = None, level: UnitLevel = "image") -> str:
    """Where an evaluation lies: of a run, or beside one of its decisions; that of studies is another file."""
    name = EVALUATION_FILE if level == "image" else f"evaluation.{level}.json"
    return storage.join(run_uri, name) if decision_id is None else beside(run_uri, decision_id, name)


class Found(NamedTuple):
    """The evaluation of a run, None without one; `stale`: there is one that is damaged, or of another run."""

    evaluation: dict[str, Any] | None
    stale: bool


def write_evaluation(uri: str, evaluation: dict[str, Any]) -> None:
    """Write an evaluation to the file `uri`."""
    storage.write_bytes(uri, (json.dumps(evaluation, indent=2, allow_nan=False) + "\n").encode())


def read_evaluation(run_uri: str, run_id: str, decision_id: str | None = None, level: UnitLevel = "image") -> Found:
    """The evaluation of a run, or of one of its decisions, if it is about the run `run_id`; a warning tells why not."""
    uri = evaluation_uri(run_uri, decision_id, level)
    try:
        evaluation = json.loads(storage.read_bytes(uri))
    except storage.NotFound:
        return Found(None, stale=False)
    except ValueError:
        evaluation = None
    # Earlier versions could judge a run before its end, which says nothing of the whole.
    if isinstance(evaluation, dict) and evaluation.get("run_id") == run_id and not evaluation.get("unfinished"):
        return Found(evaluation, stale=False)
    log.warning("%s is damaged or about another run, and is left out: run retroscan evaluate again.", uri)
    return Found(None, stale=True)
