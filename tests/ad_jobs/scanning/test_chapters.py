"""What counts as done after an interruption: parts in every state, chapter by chapter."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runkit import MODEL, RUN_ID, scored, unscored, write_part

from ad_jobs.errors import JobError
from ad_jobs.results.heatmaps import pack
from ad_jobs.results.parts import part_name
from ad_jobs.scanning import chapters
from cluster import storage


def write(run: Path, ids: list[int], chapter: int = 0, name: str | None = None, code: str | None = None) -> Path:
    """A part with one row for each of `ids`, where one comes again with another frame."""
    rows = [unscored(i, code) if code else scored(i, ids[:n].count(i)) for n, i in enumerate(ids)]
    name = name or part_name(chapter, map(str, ids))
    write_part(run, rows, name)
    return run / "scores" / f"{name}.parquet"


def objects(*ids: int) -> pa.Table:
    return pa.table({"object_id": pa.array(ids, pa.int64()), "uri": [f"/archive/{i}.png" for i in ids]})


def left(run: Path, number: int, *ids: int) -> list[int]:
    return chapters.left_to_do(str(run), RUN_ID, number, objects(*ids)).objects["object_id"].to_pylist()


def test_nothing_is_done_at_first(tmp_path: Path) -> None:
    assert left(tmp_path, 0, 3, 4, 9) == [3, 4, 9]


def test_objects_of_whole_parts_are_done(tmp_path: Path) -> None:
    # Two frames of one object.
    write(tmp_path, [3, 3, 9])
    assert left(tmp_path, 0, 3, 4, 9) == [4]


def test_failed_objects_are_done_and_counted_once(tmp_path: Path) -> None:
    write(tmp_path, [3, 9], code="corrupt")
    assert chapters.left_to_do(str(tmp_path), RUN_ID, 0, objects(3, 4, 9)).failed == 2


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


def committed(run: Path) -> dict[int, chapters.Chapter]:
    return chapters.committed(str(run / "checkpoint"), str(run))


def test_a_part_of_another_run_is_dropped_whatever_its_name(tmp_path: Path) -> None:
    own = part_name(0, ["3", "4"])
    write_part(tmp_path, [{**scored(i), "run_id": "another"} for i in (3, 4)], own)
    assert chapters.left_to_do(str(tmp_path), RUN_ID, 0, objects(3, 4), mend=False).objects.num_rows == 2
    assert (tmp_path / "scores" / f"{own}.parquet").exists()
    assert left(tmp_path, 0, 3, 4) == [3, 4]
    assert not (tmp_path / "scores" / f"{own}.parquet").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "no Parquet", "other columns", "footer"])
def test_a_part_that_is_not_whole_is_done_again(tmp_path: Path, damage: str) -> None:
    part = write(tmp_path, [3])
    data = part.read_bytes()
    if damage == "other columns":
        pq.write_table(pa.table({"object_id": [3]}), part)
    else:
        broken = {"cut": data[: len(data) // 2], "empty": b"", "no Parquet": b"no Parquet"}
        part.write_bytes(broken.get(damage, data[:-30] + b"\xff" * 22 + data[-8:]))
    assert left(tmp_path, 0, 3) == [3]
    assert not part.exists()


def test_a_store_that_fails_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = write(tmp_path, [3])

    def refused(*_: object, **__: object) -> None:
        raise OSError("no answer")

    monkeypatch.setattr(chapters.pq, "read_table", refused)
    monkeypatch.setattr("cluster.storage.local.fetch", _unreachable)
    with pytest.raises(storage.Unreachable):
        left(tmp_path, 0, 3)
    assert part.exists()


def _unreachable(uri: str, *_: object) -> None:
    raise storage.Unreachable(uri, "no answer")


def commit(run: Path, number: int, *ids: int) -> chapters.Chapter | None:
    return chapters.commit(str(run / "checkpoint"), str(run), RUN_ID, number, objects(*ids), [MODEL])


def test_a_committed_chapter_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, [0, 1])
    write(tmp_path, [2])
    write(tmp_path, [3], chapter=1)
    chapter = commit(tmp_path, 0, 0, 1, 2)
    assert chapter is not None
    assert chapter.counts.objects == chapter.counts.scored == 3
    assert [part.rows for part in chapter.parts] in ([2, 1], [1, 2])
    assert committed(tmp_path) == {0: chapter}
    commit(tmp_path, 1, 3)
    assert sorted(committed(tmp_path)) == [0, 1]


def test_a_chapter_that_lacks_an_object_is_not_committed(tmp_path: Path) -> None:
    write(tmp_path, [0, 1])
    with pytest.raises(JobError, match=r"does not balance.*object_id 2"):
        commit(tmp_path, 0, 0, 1, 2)
    assert committed(tmp_path) == {}


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
    chapters.commit(str(tmp_path / "checkpoint"), str(tmp_path), RUN_ID, 0, objects(*range(5000)), [MODEL])
    [record] = (tmp_path / "checkpoint").iterdir()
    assert len(record.read_bytes()) < 2000
    assert json.loads(record.read_text())["counts"]["objects"] == 5000


def test_a_chapter_is_not_committed_without_the_heatmaps_its_rows_refer_to(tmp_path: Path) -> None:
    shard = pack([("000000000_00000.png", b"png")])
    (tmp_path / "heatmaps").mkdir()
    write_part(tmp_path, [{**scored(0), "heatmap": f"{shard.name}#512,3"}], "part-00000-a")
    write(tmp_path, [1], name="part-00000-b")
    for kept in (None, 700, 512):
        path = tmp_path / shard.name
        path.unlink(missing_ok=True)
        if kept is not None:
            path.write_bytes(shard.data[:kept])
        write_part(tmp_path, [{**scored(0), "heatmap": f"{shard.name}#512,3"}], "part-00000-a")
        assert commit(tmp_path, 0, 0, 1) is None
        assert left(tmp_path, 0, 0, 1) == [0]
        assert not path.exists()


@pytest.mark.parametrize("damage", ["cut", "gone", "record"])
def test_a_committed_chapter_whose_files_were_changed_is_looked_at_again(tmp_path: Path, damage: str) -> None:
    part = write(tmp_path, [0, 1])
    commit(tmp_path, 0, 0, 1)
    (record,) = (tmp_path / "checkpoint").iterdir()
    if damage == "gone":
        part.unlink()
    else:
        path = part if damage == "cut" else record
        path.write_bytes(path.read_bytes()[:-10])
    assert committed(tmp_path) == {}
