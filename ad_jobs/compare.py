"""compare: two finished runs row by row, into a page, a table of what differs, and numbers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ad_jobs.comparing.joined import join, tolerance
from ad_jobs.comparing.settings import differing, pairs
from ad_jobs.comparing.summary import Joined
from ad_jobs.deciding.decided_table import DecidedTable
from ad_jobs.deciding.record import read_decision
from ad_jobs.deciding.text import rule_text
from ad_jobs.page.comparison import chart, render_comparison
from ad_jobs.results.delivery import check_beside
from ad_jobs.results.run import ModelRef, RunRecord, read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.run_specs import CompareSpec
from ad_jobs.specs import takes
from cluster import storage

FOLDER = "compared"
PAGE_FILE, TABLE_FILE, NUMBERS_FILE = "index.html", "differences.parquet", "comparison.json"


@takes(CompareSpec)
def compare(spec: CompareSpec) -> dict[str, Any]:
    """What differs between two runs, or decisions; also written to `out`, with a page and the rows that differ.

    An object is its URI, and a row that of an object, a frame and a model of both runs; runs with one model each are
    compared although it is another one, by ranks and flags.
    With decisions rows are flagged as these do: two of one run, one of each of two runs, or one and the run itself.
    `out` is by default the folder `compared/` of run B and the id of run A, or of the decisions, in it;
    what belongs to a run is not touched.

    Raises:
        UsageError: not a run, or an unfinished one; runs without a model in common, or of which one hashes its URIs;
            `out` in the folder of one, but for what belongs to comparisons there.
        JobError: a part of a run is missing or damaged.
    """
    run_b = spec.run_b or spec.run_a
    _check_out(spec.out, (spec.run_a, run_b))
    # Of one run and one decision A is the run itself.
    of_a, of_b = ([None] * 2 + list(spec.decision))[-2:]
    a, decision_a = _flagged(spec.run_a, of_a)
    b, decision_b = _flagged(run_b, of_b)
    compared = pairs(a.record, b.record)
    names = "-".join(filter(None, (of_a, of_b))) or a.record.run_id
    out = spec.out or storage.join(run_b, FOLDER, names)
    within, amp = tolerance(a, b)
    charts = []
    with tempfile.TemporaryDirectory(prefix="retroscan-compare-") as folder:
        rows = Joined(join(a, b, compared, Path(folder)), compared)
        models = []
        for number, pair in enumerate(compared):
            thresholds = _threshold(pair.a, decision_a), _threshold(pair.b, decision_b)
            models.append(rows.model(number) | dict(zip(("threshold_a", "threshold_b"), thresholds, strict=True)))
            charts.append(chart(partial(rows.scores, number), pair, thresholds))
        table = Path(folder) / TABLE_FILE
        found = {
            "version": 1,
            "a": _described(spec.run_a, a.record, of_a),
            "b": _described(run_b, b.record, of_b),
            "relation": _relation(a.record, b.record),
            "settings": [
                *([] if (of_a, of_b) == (None, None) else [_rules(decision_a, decision_b)]),
                *(setting._asdict() for setting in differing(a.record, b.record, compared)),
            ],
            "tolerance": within,
            "amp": amp,
            "objects": rows.objects(),
            "statuses": rows.statuses(),
            "models": models,
            "rows_differ": rows.write_differences(table),
            "differences": storage.join(out, TABLE_FILE),
            "page": storage.join(out, PAGE_FILE),
        }
        storage.upload_file(table, storage.join(out, TABLE_FILE))
    storage.write_bytes(storage.join(out, NUMBERS_FILE), (json.dumps(found, indent=2) + "\n").encode())
    storage.write_bytes(storage.join(out, PAGE_FILE), render_comparison(found, charts).encode())
    return found


def _check_out(out: str | None, runs: Sequence[str]) -> None:
    """Refuse a place where a run has files of its own, as the page of its report."""
    for run in runs:
        if out is not None and not f"{out}/".startswith(f"{storage.join(run, FOLDER)}/"):
            check_beside(run, out, "--out")


def _flagged(uri: str, decision_id: str | None) -> tuple[ScoreTable, dict[str, Any] | None]:
    """A run's table, flagged as it is or as a decision does; and the decision's record."""
    record = read_record(uri)
    table = ScoreTable(uri, record)
    if decision_id is None:
        return table, None
    decision = read_decision(uri, record, decision_id)
    return DecidedTable(table, decision), decision


def _threshold(model: ModelRef, decision: dict[str, Any] | None) -> float | None:
    """Above which a run, or a decision, flags a model's rows; None where a decision goes by something else."""
    if decision is None:
        return model.threshold
    return next((one["threshold"] for one in decision["models"] if one["model_id"] == model.model_id), None)


def _rules(a: dict[str, Any] | None, b: dict[str, Any] | None) -> dict[str, Any]:
    """What flags, in words, as one of the settings."""
    said = ["the run's threshold" if one is None else f"{one['decision_id']}, {rule_text(one)}" for one in (a, b)]
    return {"name": "flagged by", "a": said[0], "b": said[1]}


def _described(uri: str, record: RunRecord, decision_id: str | None) -> dict[str, Any]:
    return {
        "decision": decision_id,
        "uri": uri,
        "run_id": record.run_id,
        "started_at": record.started_at.isoformat(timespec="seconds"),
        "retroscan": record.versions.get("retroscan"),
        "source": record.source,
        "counts": record.counts.model_dump(),
    }


def _relation(a: RunRecord, b: RunRecord) -> str | None:
    """What explains that a run has fewer objects than the other."""
    for child, parent, names in ((b, a, ("B", "A")), (a, b, ("A", "B"))):
        if child.parent is not None and child.parent.run_id == parent.run_id:
            return f"{names[0]} was scanned since {names[1]}: it has only what is new, or was tried again."
    return None
