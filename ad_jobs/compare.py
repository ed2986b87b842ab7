"""compare: two finished runs row by row, into a page, a table of what differs, and numbers."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from ad_jobs.comparing.joined import join, tolerance
from ad_jobs.comparing.settings import differing, pairs
from ad_jobs.comparing.summary import Joined
from ad_jobs.page.comparison import chart, render_comparison
from ad_jobs.results.run import RunRecord, read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.specs import CompareSpec, takes
from cluster import storage

FOLDER = "compared"
PAGE_FILE, TABLE_FILE, NUMBERS_FILE = "index.html", "differences.parquet", "comparison.json"


@takes(CompareSpec)
def compare(spec: CompareSpec) -> dict[str, Any]:
    """What differs between two runs; also written to `out`, with a page and the rows that differ.

    An object is its URI, and a row that of an object, a frame and a model of both runs; runs with one model each are
    compared although it is another one, by ranks and flags.
    `out` is by default the folder `compared/` of run B and the id of run A in it; what belongs to a run is not touched.

    Raises:
        UsageError: not a run, or an unfinished one; runs without a model in common, or of which one hashes its URIs.
        JobError: a part of a run is missing or damaged.
    """
    a, b = (ScoreTable(uri, read_record(uri)) for uri in (spec.run_a, spec.run_b))
    compared = pairs(a.record, b.record)
    out = spec.out or storage.join(spec.run_b, FOLDER, a.record.run_id)
    within, amp = tolerance(a, b)
    charts = []
    with tempfile.TemporaryDirectory(prefix="retroscan-compare-") as folder:
        rows = Joined(join(a, b, compared, Path(folder)), compared)
        models = []
        for number, pair in enumerate(compared):
            models.append(rows.model(number))
            charts.append(chart(partial(rows.scores, number), pair))
        table = Path(folder) / TABLE_FILE
        found = {
            "version": 1,
            "a": _described(spec.run_a, a.record),
            "b": _described(spec.run_b, b.record),
            "relation": _relation(a.record, b.record),
            "settings": [setting._asdict() for setting in differing(a.record, b.record, compared)],
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


def _described(uri: str, record: RunRecord) -> dict[str, Any]:
    return {
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
