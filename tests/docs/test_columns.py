"""docs/columns.md names every column and every error code, and nothing that is neither."""

from __future__ import annotations

import re
from pathlib import Path

from ad_jobs.archive.fetching import CONSTANT_FRAME, ETAG_CHANGED
from ad_jobs.errors import ErrorCode
from ad_jobs.images.policy import Limits
from ad_jobs.images.remarks import Remark
from ad_jobs.schema import DEMOGRAPHICS, MANIFEST, MANIFEST_HEADERS, SCORES

DOCS = Path(__file__).parents[2] / "docs"


def first_cells(page: str, head: str) -> list[str]:
    """The names in the first column of the page's tables whose head begins with `head`."""
    tables = re.findall(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", (DOCS / page).read_text(), re.MULTILINE)
    assert tables, f"{page} has no table of {head}"
    cells = [line.split(" | ")[0] for table in tables for line in table.splitlines()]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_every_column_is_explained_once() -> None:
    of_headers = {*MANIFEST_HEADERS.names, *DEMOGRAPHICS.names} - set(MANIFEST.names)
    assert sorted(first_cells("columns.md", "column")) == sorted([*SCORES.names, *of_headers])
    _, _, section = (DOCS / "columns.md").read_text().partition("## The manifest's columns")
    above_its_table = section.partition("\n| ")[0]
    assert set(MANIFEST.names) <= set(re.findall(r"`([^`]+)`", above_its_table))


def test_every_error_code_is_explained_once() -> None:
    assert sorted(first_cells("columns.md", "`error_code`")) == sorted(ErrorCode)


def test_every_remark_is_explained_once() -> None:
    assert sorted(first_cells("columns.md", "remark")) == sorted([*Remark, CONSTANT_FRAME, ETAG_CHANGED])


def test_the_limits_are_those_of_the_code() -> None:
    assert first_cells("faults.md", "limit") == list(Limits.model_fields)
    page = (DOCS / "faults.md").read_text()
    for name, value in Limits():
        shown = f"{value >> 30} GiB" if name.endswith("bytes") else f"{value:,.0f}"
        assert f"| `{name}` | {shown} |" in page
