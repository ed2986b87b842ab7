"""`retroscan export`: what a run or a decision flagged as a table, as pictures, or as DICOM for a PACS."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ad_jobs.deciding.record import read_decision
from ad_jobs.errors import UsageError
from ad_jobs.exporting.selection import Selection, table_rows
from ad_jobs.exporting.tally import Tally
from ad_jobs.results.delivery import check_beside, deliver_file
from ad_jobs.results.run import read_record, versions
from ad_jobs.results.tables import check_workbook, write_table
from ad_jobs.run_specs import TABLES, ExportSpec
from ad_jobs.specs import takes


@takes(ExportSpec)
def export(spec: ExportSpec) -> dict[str, Any]:
    """Write what was flagged to `out`; counts of rows: `selected` = `written` + the sum of `refused`, by reason.

    `csv` and `xlsx` are one file; the others are a folder with a file a frame (`png`, `dicom-sc`, `dicom-pm`) or a
    study (`dicom-sr`, `dicom-ko`), `index.csv` of all rows, and `export.json`.
    The same command writes the same bytes again, and replaces nothing else.

    Raises:
        UsageError: not a finished run, no such decision, something else at `out`, or the extra `export` is missing.
        JobError: a part of the run is missing or damaged; the store refuses its credentials, or is away for long.
    """
    _need(spec.format)
    check_workbook(spec.out, "--out")
    check_beside(spec.run, spec.out, "--out")
    record = read_record(spec.run)
    if spec.manifest is not None and (spec.format in TABLES or record.config.get("identifiers") != "hashed"):
        raise UsageError(
            "--manifest finds the objects of a run with hashed identifiers.",
            f"--manifest {spec.manifest}, where nothing is looked up by it",
            "Leave it out.",
        )
    decision = None if spec.decision is None else read_decision(spec.run, record, spec.decision)
    selection = Selection(spec.run, record, decision, spec.top, spec.all)
    asked = {
        "format": spec.format,
        "run_id": record.run_id,
        "run_digest": record.digest,
        "decision_id": spec.decision,
        "top": spec.top,
        "all": spec.all,
        "retroscan": versions()["retroscan"],
    }
    tally = Tally()
    if spec.format in TABLES:
        _table(spec, selection, tally)
    else:
        from ad_jobs.exporting.pictures import export_pictures

        export_pictures(spec, selection, asked, tally)
    told = {name: asked[name] for name in ("format", "run_id", "decision_id")}
    return {"out": spec.out, **told, **tally.told()}


def _table(spec: ExportSpec, selection: Selection, tally: Tally) -> None:
    with tempfile.TemporaryDirectory(prefix="retroscan-export-") as folder, table_rows(selection) as rows:
        path = Path(folder) / f"rows.{spec.format}"
        tally.written = write_table(rows, path)
        deliver_file(path, spec.out, "--out")
    tally.files = 1


def _need(format: str) -> None:
    """Raise UsageError where a package of the extra `export` is missing."""
    from importlib.util import find_spec

    if format.startswith("dicom-") and find_spec("highdicom") is None:
        raise UsageError(
            f"--format {format} needs the package highdicom.", "none", "Install it: pip install 'retroscan[export]'."
        )
