"""Verdicts: rows are only ever added, the latest that was not withdrawn stands, and reviewers lose nothing."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_jobs.errors import JobError, UsageError
from ad_jobs.reviewing.verdicts import FOLDER, Verdict, add, files, noted, read_verdicts, withdrawal
from ad_jobs.schema import ACCEPTED, REJECTED, SUPPLEMENTED, VERDICTS
from cluster import storage


def _row(object_id: int = 1, frame: int = 0, **values: Any) -> dict[str, Any]:
    base = {"content_sha256": "ab" * 32, "uri": f"/a/{object_id}", "flagged": True}
    return {"object_id": object_id, "frame": frame, **base, **values}


def _say(run: str, reviewer: str, verdict: str, object_id: int = 1, frame: int = 0) -> Verdict:
    one = noted(_row(object_id, frame), reviewer, verdict, "d00d00d00d00")
    add(run, [one])
    return one


def _standing(run: str) -> list[tuple[int, int, str, str]]:
    found = read_verdicts(run)[["object_id", "frame", "reviewer", "verdict"]]
    return list(found.itertuples(index=False, name=None))


def test_a_run_without_verdicts_has_an_empty_table_of_the_schema(tmp_path):
    found = read_verdicts(str(tmp_path))
    assert found.empty
    assert list(found.columns) == VERDICTS.names


def test_a_verdict_is_read_as_it_was_noted(tmp_path):
    said = _say(str(tmp_path), "Ada", ACCEPTED, 7, 3)
    (row,) = read_verdicts(str(tmp_path)).to_dict("records")
    assert row.pop("noted_at").to_pydatetime() == said.noted_at
    assert pd.isna(row.pop("withdraws"))
    assert row == {name: value for name, value in said._asdict().items() if name in row}
    (file,) = (tmp_path / FOLDER).iterdir()
    assert pq.read_schema(file).equals(VERDICTS)


@pytest.mark.parametrize(
    ("changed", "why"), [({"verdict": "banana"}, "'banana' is no verdict"), ({"reviewer": None}, "a value is missing")]
)
def test_rows_that_are_no_verdicts_are_refused(tmp_path, changed, why):
    row = {**noted(_row(), "Ada", ACCEPTED)._asdict(), **changed}
    (tmp_path / FOLDER).mkdir()
    pq.write_table(pa.Table.from_pylist([row], VERDICTS), tmp_path / FOLDER / "a.parquet")
    with pytest.raises(JobError, match=why):
        read_verdicts(str(tmp_path))


def test_the_latest_of_each_reviewer_stands(tmp_path):
    run = str(tmp_path)
    _say(run, "Ada", ACCEPTED)
    _say(run, "Bob", REJECTED)
    _say(run, "Ada", SUPPLEMENTED)
    _say(run, "Ada", REJECTED, frame=1)
    assert _standing(run) == [(1, 0, "Ada", SUPPLEMENTED), (1, 0, "Bob", REJECTED), (1, 1, "Ada", REJECTED)]


def test_what_is_withdrawn_gives_way_to_what_was_said_before(tmp_path):
    run = str(tmp_path)
    first = _say(run, "Ada", ACCEPTED)
    second = _say(run, "Ada", REJECTED)
    add(run, [withdrawal(second)])
    assert _standing(run) == [(1, 0, "Ada", ACCEPTED)]
    add(run, [withdrawal(first)])
    assert _standing(run) == []
    # Nothing was deleted.
    assert len(files(run)) == 4


def test_nobody_withdraws_what_another_said(tmp_path):
    run = str(tmp_path)
    said = _say(run, "Ada", ACCEPTED)
    add(run, [withdrawal(said)._replace(reviewer="Bob")])
    assert _standing(run) == [(1, 0, "Ada", ACCEPTED)]


def test_reviewers_at_the_same_time_lose_nothing(tmp_path):
    run = str(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: _say(run, f"reviewer {n % 4}", ACCEPTED, n), range(40)))
    assert [row[0] for row in _standing(run)] == list(range(40))


def test_a_file_that_is_being_written_is_none_yet(tmp_path):
    _say(str(tmp_path), "Ada", ACCEPTED)
    (tmp_path / FOLDER / f".{uuid.uuid4().hex}.tmp").write_bytes(b"half")
    (tmp_path / FOLDER / ".half.parquet").write_bytes(b"half")
    assert len(read_verdicts(str(tmp_path))) == 1


@pytest.mark.parametrize("broken", ["bytes", "columns"])
def test_a_damaged_file_is_told_and_not_left_out(tmp_path, broken):
    _say(str(tmp_path), "Ada", ACCEPTED)
    path: Path = tmp_path / FOLDER / "20990101T000000000000-x.parquet"
    if broken == "bytes":
        path.write_bytes(b"no table")
    else:
        pq.write_table(pa.table({"verdict": ["accepted"]}), path)
    with pytest.raises(JobError, match=r"20990101T.* cannot be read as verdicts"):
        read_verdicts(str(tmp_path))


@pytest.mark.parametrize(("reviewer", "verdict"), [("Ada", "withdrawn"), ("Ada", "yes"), (" ", ACCEPTED)])
def test_a_word_that_is_no_verdict_and_nobodys_verdict_are_refused(reviewer, verdict):
    with pytest.raises(UsageError):
        noted(_row(), reviewer, verdict)


@pytest.mark.s3
def test_verdicts_in_a_store(s3):
    run = f"s3://{s3.bucket}/{uuid.uuid4().hex}/run"
    said = _say(run, "Ada", ACCEPTED)
    _say(run, "Bob", REJECTED)
    add(run, [withdrawal(said)])
    assert _standing(run) == [(1, 0, "Bob", REJECTED)]
    assert len(storage.list_names(storage.join(run, FOLDER))) == 3
