"""Rows as a file for people: CSV, or a workbook of Excel by its name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ad_jobs.archive.sql import Stream
from ad_jobs.errors import UsageError
from ad_jobs.results.csv_table import write_csv
from ad_jobs.results.xlsx_table import write_xlsx


def check_workbook(out: str, option: str) -> None:
    """Raise UsageError where `out` is to be a workbook, and what writes one is missing."""
    if out.endswith(".xlsx") and importlib.util.find_spec("openpyxl") is None:
        raise UsageError(
            f"{option} FILE.xlsx needs the package openpyxl.", "none", "Install it: pip install 'retroscan[export]'."
        )


def write_table(stream: Stream, path: Path) -> int:
    """Write a header and all rows to a local file; how many there were.

    Raises:
        UsageError: more rows than a worksheet holds.
    """
    return write_xlsx(stream, path) if path.suffix == ".xlsx" else write_csv(stream, path)
