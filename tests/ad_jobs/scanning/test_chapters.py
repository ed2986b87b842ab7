"""What counts as done after an interruption: parts in every state, chapter by chapter."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from runkit import MODEL, scored, unscored, write_part

from ad_jobs.errors import JobError
from ad_jobs.results.parts import part_name
from ad_jobs.scanning import chapters


def write(run: Path, ids: list[int], chapter: int = 0, name: str | None = None, code: str | None = None) -> Path:
    """A part with one row for each of `ids`, where one comes again with another frame."""
    rows = [unscored(i, code) if code else scored(i, ids[:n].count(i)) for n, i in enumerate(ids)]
    name = name or part_name(chapter, map(str, ids))
    write_part(run, rows, name)
    return run / "scores" / f"{name}.parquet"


def objects(*ids: int) -> pa.Table:
    return pa.table({"object_id": pa.array(ids, pa.int64()), "uri": [f"/archive/{i}.png" for i in ids]})


def left(run: Path, number: int, *ids: int) -> list[int]:
    return chapters.left_to_do(str(run), number, objects(*ids)).objects["object_id"].to_pylist()


def test_nothing_is_done_at_first(tmp_path: Path) -> None:
    assert left(tmp_path, 0, 3, 4, 9) == [3, 4, 9]


def test_objects_of_whole_parts_are_done(tmp_path: Path) -> None:
    # Two frames of one object.
    write(tmp_path, [3, 3, 9])
    assert left(tmp_path, 0, 3, 4, 9) == [4]


def test_failed_objects_are_done_and_counted_once(tmp_path: Path) -> None:
    write(tmp_path, [3, 9], code="corrupt")
    assert chapters.left_to_do(str(tmp_path), 0, objects(3, 4, 9)).failed == 2


def test_another_chapters_parts_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, [3, 4], chapter=1)
    assert left(tmp_path, 0, 0, 1, 2) == [0, 1, 2]
    assert left(tmp_path, 1, 3, 4, 5) == [5]


def test_the_second_part_with_an_object_is_dropped_and_its_rest_done_again(tmp_path: Path) -> None:
    first, second = write(tmp_path, [3, 4], name="part-00000-a"), write(tmp_path, [4, 9], name="part-00000-b")
    assert left(tmp_path, 0, 3, 4, 9) == [9]
    assert first.exists()
    assert not second.exists()


def test_a_part_of_other_objects_is_an_error_and_stays(tmp_path: Path) -> None:
    part = write(tmp_path, [3, 77])
    with pytest.raises(JobError, match=r"does not have in that chapter.*Scan into a new one"):
        left(tmp_path, 0, 3, 4, 9)
    assert part.exists()


def test_what_is_half_written_is_no_part(tmp_path: Path) -> None:
    write(tmp_path, [3])
    (tmp_path / "scores" / ".0123.tmp").write_bytes(b"PAR1 and no more")
    assert left(tmp_path, 0, 3, 4) == [4]


def commit(run: Path, number: int, *ids: int) -> chapters.Chapter:
    return chapters.commit(str(run / "checkpoint"), str(run), number, objects(*ids), [MODEL])


def test_a_committed_chapter_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, [0, 1])
    write(tmp_path, [2])
    write(tmp_path, [3], chapter=1)
    committed = commit(tmp_path, 0, 0, 1, 2)
    assert committed.counts.objects == committed.counts.scored == 3
    assert [part.rows for part in committed.parts] in ([2, 1], [1, 2])
    assert chapters.committed(str(tmp_path / "checkpoint")) == {0: committed}
    commit(tmp_path, 1, 3)
    assert sorted(chapters.committed(str(tmp_path / "checkpoint"))) == [0, 1]


def test_a_chapter_that_lacks_an_object_is_not_committed(tmp_path: Path) -> None:
    write(tmp_path, [0, 1])
    with pytest.raises(JobError, match=r"does not balance.*object_id 2"):
        commit(tmp_path, 0, 0, 1, 2)
    assert chapters.committed(str(tmp_path / "checkpoint")) == {}


def test_shards_that_no_row_refers_to_are_dropped_in_their_own_chapter_alone(tmp_path: Path) -> None:
    folder = tmp_path / "heatmaps"
    folder.mkdir()
    for name in ("part-00000-orphan.tar", "part-00001-of-another.tar"):
        (folder / name).write_bytes(b"\0" * 10240)
    write(tmp_path, [0])
    commit(tmp_path, 0, 0)
    assert [path.name for path in folder.iterdir()] == ["part-00001-of-another.tar"]


def test_a_record_holds_no_ids(tmp_path: Path) -> None:
    """Ten million objects are fifty chapters; what is kept of each must not grow with its objects."""
    write_part(tmp_path, [scored(i) for i in range(5000)], "part-00000-0")
    chapters.commit(str(tmp_path / "checkpoint"), str(tmp_path), 0, objects(*range(5000)), [MODEL])
    [record] = (tmp_path / "checkpoint").iterdir()
    assert len(record.read_bytes()) < 2000
    assert json.loads(record.read_text())["counts"]["objects"] == 5000
