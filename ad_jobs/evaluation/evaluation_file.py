"""RUN/evaluation.json: what `evaluate` writes, and a report shows if it is about the same run."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from cluster import storage

EVALUATION_FILE = "evaluation.json"


class Found(NamedTuple):
    """The evaluation of a run, None if there is none of it; `stale`: there is one of another run."""

    evaluation: dict[str, Any] | None
    stale: bool


def write_evaluation(uri: str, evaluation: dict[str, Any]) -> None:
    """Write an evaluation to the file `uri`."""
    storage.write_bytes(uri, (json.dumps(evaluation, indent=2, allow_nan=False) + "\n").encode())


def read_evaluation(run_uri: str, run_id: str) -> Found:
    """The evaluation in the folder `run_uri`, if it is about the run `run_id`."""
    try:
        evaluation: dict[str, Any] = json.loads(storage.read_bytes(storage.join(run_uri, EVALUATION_FILE)))
    except storage.NotFound:
        return Found(None, stale=False)
    # Earlier versions could judge a run before its end, which says nothing of the whole.
    if evaluation.get("run_id") != run_id or evaluation.get("unfinished"):
        return Found(None, stale=True)
    return Found(evaluation, stale=False)
