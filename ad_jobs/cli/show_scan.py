"""A scan's result for machines: the run's record, and what of its flags is out of all proportion."""

from __future__ import annotations

from typing import Any

from ad_jobs.deciding.proportion import out_of_proportion
from ad_jobs.results.run import RunRecord
from ad_jobs.results.score_table import ScoreTable


def scan_json(record: RunRecord, run_uri: str) -> dict[str, Any]:
    """run.json, and `out_of_proportion`: readable output has that in the log."""
    found = out_of_proportion(ScoreTable(run_uri, record), run_uri, record)
    return {**record.model_dump(mode="json"), "out_of_proportion": [one.told() for one in found]}
