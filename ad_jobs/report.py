"""report: a finished run as one self-contained HTML page, RUN/report/index.html."""

from __future__ import annotations

from ad_jobs.deciding.drift import DRIFT_FILE
from ad_jobs.evaluation.evaluation_file import read_evaluation
from ad_jobs.page import drift
from ad_jobs.page.render import render
from ad_jobs.page.sections import COLUMNS, sections
from ad_jobs.results.run import read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.specs import ReportSpec, takes
from cluster import storage

REPORT_FILE = "report/index.html"


@takes(ReportSpec)
def report(spec: ReportSpec) -> str:
    """The URI of the page just written for a finished run; its evaluation.json is shown if there is one.

    Beside the page it writes RUN/drift.parquet: deciding.drift.DRIFT.

    Raises:
        UsageError: not a run, or an unfinished one.
        JobError: a part of the score table is missing or damaged.
    """
    record = read_record(spec.run)
    found = read_evaluation(spec.run, record.run_id)
    with ScoreTable(spec.run, record).copied(list(dict.fromkeys([*COLUMNS, *drift.COLUMNS]))) as table:
        drifting = drift.section(table)
        page = render(sections(table, found, spec.top) | drifting.context)
    storage.write_bytes(storage.join(spec.run, DRIFT_FILE), drifting.file)
    uri = storage.join(spec.run, REPORT_FILE)
    storage.write_bytes(uri, page.encode())
    return uri
