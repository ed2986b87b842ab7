"""The table in bounded memory: batches, SQL that spills, rows of some objects; and a damaged part is told as such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from runkit import record, scored, unscored, write_part

from ad_jobs.errors import JobError
from ad_jobs.results.run import write_record
from ad_jobs.results.score_table import CopiedTable, ScoreTable
from ad_jobs.schema import SCORES


@pytest.fixture
def table(tmp_path: Path) -> ScoreTable:
    write_part(tmp_path, [scored(i, frame, score=i / 10) for i in (4, 0) for frame in (1, 0)], "part-0")
    write_part(tmp_path, [unscored(1, "empty"), scored(2), scored(3)], "part-1")
    return ScoreTable(str(tmp_path), write_record(str(tmp_path), record(tmp_path, 5)))


def test_batches_hold_every_row_once(table: ScoreTable) -> None:
    rows = pa.Table.from_batches(list(table.batches(["frame", "object_id"])))
    assert rows.schema == pa.schema([SCORES.field("frame"), SCORES.field("object_id")])
    assert sorted(map(tuple, (row.values() for row in rows.to_pylist()))) == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (0, 4),
        (1, 0),
        (1, 4),
    ]


def test_sql_sees_the_table_and_those_that_it_is_given(table: ScoreTable) -> None:
    chosen = pa.table({"wanted": [0, 3]})
    found = table.query(
        "SELECT object_id, count(*) AS n FROM scores SEMI JOIN chosen ON object_id = wanted WHERE status = $1 "
        "GROUP BY object_id ORDER BY object_id",
        ["object_id", "status"],
        ["scored"],
        chosen=chosen,
    )
    assert found.to_pylist() == [{"object_id": 0, "n": 2}, {"object_id": 3, "n": 1}]


def test_rows_of_some_objects_are_whole_and_ordered(table: ScoreTable) -> None:
    found = table.of_objects([4, 1])
    assert found.schema.names == SCORES.names
    assert [(row["object_id"], row["frame"], row["status"]) for row in found.to_pylist()] == [
        (1, 0, "failed"),
        (4, 0, "scored"),
        (4, 1, "scored"),
    ]


def test_a_copy_has_the_same_rows_and_is_gone_afterwards(table: ScoreTable, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ["object_id", "frame", "model_id", "status", "score"]
    expected = table.rows(columns)
    # Parts are smaller than what is written at a time, or larger.
    for rows in (1, 3, 100):
        monkeypatch.setattr("ad_jobs.results.score_table.BATCH_ROWS", rows)
        with table.copied(columns) as copy:
            assert copy.rows(columns).equals(expected)
            assert copy.query("SELECT count(*) AS n FROM scores", ["frame"]).to_pylist() == [{"n": 7}]
            path = copy.path
        assert not path.exists()


def test_a_copy_is_read_without_keeping_what_was_read(
    table: ScoreTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ad_jobs.results.score_table.BATCH_ROWS", 10_000)
    path, ids = tmp_path / "copy.parquet", np.random.default_rng(0).integers(0, 1 << 60, 400_000)
    pq.write_table(pa.table({"object_id": ids}), path, row_group_size=10_000)
    before, most = pa.total_allocated_bytes(), 0
    for _ in CopiedTable(table, path).batches(["object_id"]):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < path.stat().st_size / 4


@pytest.mark.parametrize("damage", ["gone", "cut", "another"])
def test_a_damaged_part_is_told_as_such_by_sql_too(table: ScoreTable, damage: str) -> None:
    part = Path(table.uri) / "scores/part-1.parquet"
    if damage == "gone":
        part.unlink()
    elif damage == "cut":
        part.write_bytes(part.read_bytes()[:-20])
    else:
        write_part(Path(table.uri), [scored(1)], "part-1")
    expected = r"has 1 row, and run\.json lists 3" if damage == "another" else r"part-1.*cannot be read"
    with pytest.raises(JobError, match=expected):
        table.query("SELECT count(*) FROM scores", ["object_id"])
    with pytest.raises(JobError, match=expected):
        list(table.batches(["object_id"]))
    with pytest.raises(JobError):
        table.dataset()


def test_a_sort_larger_than_its_memory_spills(table: ScoreTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ad_jobs.archive.sql.MEMORY", "64MB")
    sql = "SELECT repeat(md5(i::VARCHAR), 4) AS name FROM range(1000000) AS numbers(i) ORDER BY name"
    names = table.query(sql, ["object_id"])["name"]
    assert names.nbytes > 2 * 64e6
    assert len(names) == 1_000_000
    assert pc.all(pc.less(names[:-1], names[1:])).as_py()
