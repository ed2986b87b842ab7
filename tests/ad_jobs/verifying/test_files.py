"""The files of a run against its record: all of them, in order, each hashed whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from runkit import record, scored, write_part

from ad_jobs.results import parts
from ad_jobs.results.heatmaps import member_name, pack
from ad_jobs.results.run import RunRecord, write_record
from ad_jobs.verify import verify
from ad_jobs.verifying import files

PARTS = 12


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Twelve parts of one to twelve rows, and as many shards of as many heatmaps."""
    (tmp_path / "heatmaps").mkdir()
    object_id = 0
    for part in range(PARTS):
        rows = [scored(object_id + i) for i in range(part + 1)]
        object_id += len(rows)
        write_part(tmp_path, rows, f"part-{part:02d}")
        shard = pack((member_name(row["object_id"], 0), b"a picture") for row in rows)
        (tmp_path / "heatmaps" / f"part-{part:02d}.tar").write_bytes(shard.data)
    write_record(str(tmp_path), record(tmp_path, object_id))
    return tmp_path


def of(run: Path) -> RunRecord:
    return RunRecord.model_validate_json((run / "run.json").read_bytes())


@pytest.mark.parametrize("together", [1, 5000, 4 << 20])
def test_every_file_is_looked_at_however_many_go_together(
    run: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(files, "_TOGETHER_BYTES", together)
    monkeypatch.setattr(parts, "CHUNK_BYTES", 1024)
    assert files.check_score_parts(str(run), of(run)) == []
    marks, differences = files.check_heatmap_parts(str(run), of(run))
    assert differences == []
    assert list(marks) == [part.name for part in of(run).heatmap_parts]
    assert len(set(marks.values())) == PARTS
    for name in ("scores/part-03.parquet", "scores/part-11.parquet", "heatmaps/part-07.tar"):
        whole = (run / name).read_bytes()
        # The last byte of a tar stands behind its end.
        (run / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = files.check_score_parts(str(run), of(run))
    assert [text.split(":")[0] for text in found] == ["scores/part-03.parquet", "scores/part-11.parquet"]
    again, found = files.check_heatmap_parts(str(run), of(run))
    assert [text.split(":")[0] for text in found] == ["heatmaps/part-07.tar"]
    assert again == marks


def test_rows_are_counted_where_they_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The footer of a part that holds what the record says is not looked at twice.
    monkeypatch.setattr(files, "part_rows", None)
    found = verify(str(run), sample=0)
    assert found.rows_checked
    assert not any(text.startswith("scores/") for text in found.differences)


def test_each_part_with_other_rows_than_recorded_is_named(run: Path) -> None:
    whole = of(run)
    changed = [
        part.model_copy(update={"rows": part.rows + 1 if number in (2, 9) else part.rows})
        for number, part in enumerate(whole.parts)
    ]
    write_record(str(run), whole.model_copy(update={"parts": changed}))
    found = verify(str(run), sample=0)
    assert [text for text in found.differences if text.startswith("scores/")] == [
        "scores/part-02.parquet: 3 rows; run.json has 4",
        "scores/part-09.parquet: 10 rows; run.json has 11",
    ]
    assert not found.rows_checked


def test_a_part_of_the_recorded_digest_that_is_no_table_is_named(run: Path) -> None:
    (run / "scores" / "part-05.parquet").write_bytes(b"PAR1 and no more")
    whole = of(run)
    digest, size = _described(run / "scores" / "part-05.parquet")
    changed = [
        part.model_copy(update={"sha256": digest, "bytes": size}) if number == 5 else part
        for number, part in enumerate(whole.parts)
    ]
    write_record(str(run), whole.model_copy(update={"parts": changed}))
    found = verify(str(run), sample=0)
    [only] = [text for text in found.differences if text.startswith("scores/")]
    assert only.startswith("scores/part-05.parquet: no whole Parquet file")
    assert not found.rows_checked


def _described(path: Path) -> tuple[str, int]:
    with parts.hashed(str(path)) as (digest, size, _):
        return digest, size
