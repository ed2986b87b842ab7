"""Which columns a condition reads: those it names, and all of them where it does not say."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import ad_jobs
from ad_jobs.archive.condition import columns_in, in_sql, rows_where
from ad_jobs.archive.sql import Stream, streaming

PACKAGE = Path(ad_jobs.__file__).parent
NAMES = ["group", "object_id", "score", "flagged", "modality", "fetch_ms", "decode_ms"]


@pytest.mark.parametrize(
    ("where", "read"),
    [
        ("flagged", ["flagged"]),
        ("FLAGGED AND scores.Score > 0.5", ["score", "flagged"]),
        ("\"modality\" = 'score' OR modality IS NULL", ["modality"]),
        ("object_id % 10 = 0 -- score", ["object_id"]),
        ("group = 'a' AND manifest.Group IS NOT NULL", ["group"]),
        ("object_id IN (SELECT 3 WHERE score > 1)", ["object_id", "score"]),
        ("1 = 1", []),
        ("patient = 3", []),
        # Over several, and none that can be told.
        ("COLUMNS('.*_ms') > 3", NAMES),
        ("score >", NAMES),
        ("\ud800", NAMES),
    ],
)
def test_columns_that_a_condition_reads(where: str, read: list[str]) -> None:
    assert columns_in(where, NAMES) == read


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("group = 'é'", [0]),
        ("'é' = GROUP OR manifest.group LIKE 'group%'", [0, 1]),
        ("\"group\" = 'group b'", [1]),
        ("group IS NULL -- group", [2]),
        ("object_id IN (SELECT max(object_id) FROM manifest GROUP BY group)", [0, 1, 2]),
        ("object_id = (SELECT quantile_cont(object_id, 0.5) WITHIN GROUP (ORDER BY object_id) FROM manifest)", []),
    ],
)
def test_the_column_group_needs_no_quotes(where: str, ids: list[int]) -> None:
    table = pa.table({"object_id": [0, 1, 2], "group": ["é", "group b", None]})
    if "SELECT" in where:
        # A table can be read once; what follows and goes before is kept as it is.
        assert in_sql(where).replace('"', "") == where
        return
    found = rows_where(Stream.of(table), "manifest", where, columns=["object_id"], order=["object_id"], help="")
    assert found["object_id"].to_pylist() == ids


def test_a_progress_bar_goes_nowhere() -> None:
    """DuckDB draws one on stdout in a terminal, which is the verb's."""
    for sealed in (False, True):
        with streaming({}, sealed=sealed) as connection:
            assert connection.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (False,)
    opened = [path.name for path in PACKAGE.rglob("*.py") if "duckdb.connect" in path.read_text(encoding="utf-8")]
    assert opened == ["sql.py"]
