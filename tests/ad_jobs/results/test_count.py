"""The balance notices every row that is lost, repeated or out of place, and counts what is right."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runkit import MODEL, RUN_ID, SECOND, scored, unscored, write_part

from ad_jobs.errors import ErrorCode, JobError
from ad_jobs.results.count import assert_balanced, count_table
from ad_jobs.results.parts import part_uris
from ad_jobs.schema import SCORES

OBJECTS = 6
Rows = list[dict[str, Any]]


def good_rows() -> Rows:
    """Six objects: three single images, one of three frames, one that failed, one that was skipped."""
    return [
        scored(0, flagged=True, heatmap="heatmaps/part-0.tar#512,10"),
        scored(1),
        *(scored(2, frame) for frame in range(3)),
        unscored(3, "truncated"),
        unscored(4, "not_an_image"),
        scored(5),
    ]


def test_counts_of_a_balanced_table(tmp_path: Path) -> None:
    rows = good_rows()
    write_part(tmp_path, rows[:4], "part-0")
    write_part(tmp_path, rows[4:], "part-1")
    table = count_table(part_uris(str(tmp_path)), objects=OBJECTS, run_id=RUN_ID, model_ids=[MODEL])
    assert_balanced(table, OBJECTS)
    counts = table.counts
    assert (counts.objects, counts.scored, counts.failed, counts.skipped) == (6, 4, 1, 1)
    assert (counts.rows, counts.flagged, counts.heatmaps) == (8, 1, 1)
    assert counts.by_code == {"truncated": 1, "not_an_image": 1}


def without(index: int) -> Callable[[Rows], Rows]:
    return lambda rows: rows[:index] + rows[index + 1 :]


SPOILT: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "an object is lost": (without(1), "object_id 1"),
    "a middle frame is lost": (without(3), "object_id 2"),
    "a first frame is lost": (without(2), "object_id 2"),
    "a row is repeated": (lambda rows: [*rows, rows[1]], "object_id 1"),
    "a frame takes another's place": (lambda rows: [*without(3)(rows), rows[2]], "object_id 2"),
    "a failed object is repeated": (lambda rows: [*rows, unscored(3, "truncated")], "object_id 3"),
    "one lost, one repeated": (lambda rows: [*without(1)(rows), rows[0]], "object_id 1"),
    "a stranger": (lambda rows: [*rows, scored(OBJECTS)], f"object_id {OBJECTS}"),
    "a negative id": (lambda rows: [*rows, scored(-1)], "object_id -1"),
    "a row of another model": (lambda rows: [*rows, scored(1, model_id=SECOND)], "no model of this run"),
    "failed without a reason": (lambda rows: [*without(1)(rows), scored(1, status="failed")], "object_id 1"),
    "scored with an error": (lambda rows: [*without(1)(rows), scored(1, error_code="empty")], "object_id 1"),
    "an unknown code": (lambda rows: [*without(3 + 2)(rows), unscored(3, "bad_luck")], "object_id 3"),
    "an unknown status": (lambda rows: [*without(1)(rows), scored(1, status="done")], "object_id 1"),
    "a table without rows": (lambda _: [], "object_id 0"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_table_does_not_balance(tmp_path: Path, case: str) -> None:
    spoil, named = SPOILT[case]
    write_part(tmp_path, spoil(good_rows()))
    with pytest.raises(JobError, match=named):
        assert_balanced(
            count_table(part_uris(str(tmp_path)), objects=OBJECTS, run_id=RUN_ID, model_ids=[MODEL]), OBJECTS
        )


def test_a_whole_part_written_twice_does_not_balance(tmp_path: Path) -> None:
    for name in ("part-0", "part-0-again"):
        write_part(tmp_path, good_rows(), name)
    table = count_table(part_uris(str(tmp_path)), objects=OBJECTS, run_id=RUN_ID, model_ids=[MODEL])
    with pytest.raises(JobError, match="6 objects with repeated or missing frames"):
        assert_balanced(table, OBJECTS)


def test_a_selection_has_its_own_ids(tmp_path: Path) -> None:
    write_part(tmp_path, [scored(7), unscored(40, "empty"), scored(900)])
    selected = np.array([7, 40, 900])
    table = count_table(part_uris(str(tmp_path)), objects=3, run_id=RUN_ID, model_ids=[MODEL], selected=selected)
    assert_balanced(table, 3)
    other = count_table(
        part_uris(str(tmp_path)), objects=3, run_id=RUN_ID, model_ids=[MODEL], selected=np.array([7, 41, 900])
    )
    with pytest.raises(JobError, match=r"not to be scanned \(object_id 40\)"):
        assert_balanced(other, 3)


def test_a_selection_must_be_ascending(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ascending"):
        count_table(part_uris(str(tmp_path)), objects=2, run_id=RUN_ID, model_ids=[MODEL], selected=np.array([3, 3]))


def test_every_object_is_wanted_under_every_model(tmp_path: Path) -> None:
    rows = [scored(0), scored(0, model_id=SECOND), scored(1), unscored(1, "non_finite_score", SECOND)]
    write_part(tmp_path, rows)
    models = [MODEL, SECOND]
    table = count_table(part_uris(str(tmp_path)), objects=2, run_id=RUN_ID, model_ids=models)
    assert_balanced(table, 2)
    # The worst of its rows.
    assert (table.counts.scored, table.counts.failed, table.counts.rows) == (1, 1, 4)
    write_part(tmp_path, rows[:3])
    with pytest.raises(JobError, match=f"1 objects without a row under model {SECOND}"):
        assert_balanced(count_table(part_uris(str(tmp_path)), objects=2, run_id=RUN_ID, model_ids=models), 2)


def test_an_object_is_counted_once_whatever_its_frames_suffered(tmp_path: Path) -> None:
    frames = [scored(0), {**unscored(0, "non_finite_score"), "frame": 1}, scored(0, 2)]
    write_part(tmp_path, frames)
    table = count_table(part_uris(str(tmp_path)), objects=1, run_id=RUN_ID, model_ids=[MODEL])
    assert_balanced(table, 1)
    assert (table.counts.scored, table.counts.failed) == (0, 1)


def test_every_error_code_is_counted_by_name(tmp_path: Path) -> None:
    write_part(tmp_path, [unscored(i, str(code)) for i, code in enumerate(ErrorCode)])
    table = count_table(part_uris(str(tmp_path)), objects=len(ErrorCode), run_id=RUN_ID, model_ids=[MODEL])
    assert_balanced(table, len(ErrorCode))
    assert table.counts.by_code == {str(code): 1 for code in ErrorCode}
    assert (table.counts.failed, table.counts.skipped) == (len(ErrorCode) - 2, 2)


def test_nothing_to_scan_balances(tmp_path: Path) -> None:
    table = count_table(
        part_uris(str(tmp_path)), objects=0, run_id=RUN_ID, model_ids=[MODEL], selected=np.array([], np.int64)
    )
    assert_balanced(table, 0)
    assert table.counts.rows == 0


def test_memory_does_not_grow_with_python_objects(tmp_path: Path) -> None:
    objects = 400_000
    columns = {name: pa.nulls(objects, field.type) for name, field in zip(SCORES.names, SCORES, strict=True)}
    columns["object_id"] = pa.array(np.arange(objects))
    columns["frame"] = pa.array(np.zeros(objects, np.int32))
    columns["status"] = pa.array(["scored"]).take(pa.array(np.zeros(objects, np.int64)))
    columns["model_id"] = pa.array([MODEL]).take(pa.array(np.zeros(objects, np.int64)))
    columns["run_id"] = pa.array([RUN_ID]).take(pa.array(np.zeros(objects, np.int64)))
    (tmp_path / "scores").mkdir()
    pq.write_table(pa.table(columns, SCORES), tmp_path / "scores/part-0.parquet")
    tracemalloc.start()
    table = count_table(part_uris(str(tmp_path)), objects=objects, run_id=RUN_ID, model_ids=[MODEL])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_balanced(table, objects)
    # 13 bytes an object, a few arrays of one batch, and the temporaries; a dict would take over 100.
    assert peak < 60 * objects


@pytest.mark.parametrize("selected", [None, np.array([3, 5, 8, 9, 20, 21, 40])])
@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_windows_count_what_one_count_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, selected: np.ndarray | None
) -> None:
    """With a lost object, a repeated one, and rows below, between and above what was to be scanned."""
    ids = list(range(7)) if selected is None else selected.tolist()
    rows = [scored(i) for i in ids if i != ids[2]] + [scored(ids[5]), unscored(ids[1], "empty")]
    rows += [scored(i) for i in (-4, 7, 39, 500)]
    for number, some in enumerate((rows[::3], rows[1::3], rows[2::3])):
        write_part(tmp_path, some, f"part-{number}")
    # Of this one nobody knows which ids it holds.
    pq.write_table(
        pa.Table.from_pylist([scored(ids[0], 1), scored(900)], SCORES),
        tmp_path / "scores/part-9.parquet",
        write_statistics=False,
    )
    expected = count_table(part_uris(str(tmp_path)), objects=7, run_id=RUN_ID, model_ids=[MODEL], selected=selected)
    assert len(expected.complaints) == 3
    monkeypatch.setattr("ad_jobs.results.count.WINDOW", window)
    found = count_table(part_uris(str(tmp_path)), objects=7, run_id=RUN_ID, model_ids=[MODEL], selected=selected)
    assert found.counts == expected.counts

    def named(complaint: str) -> tuple[str, list[str]]:
        what, _, ids_named = complaint.partition(" (object_id ")
        return what, sorted(ids_named.strip(")").split(", "))

    assert sorted(map(named, found.complaints)) == sorted(map(named, expected.complaints))
