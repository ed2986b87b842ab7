"""run.json: written last, read back as it was, refused when it is missing or of another form."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runkit import GEOMETRY, record, scored, unscored, write_part

from ad_jobs.errors import UsageError
from ad_jobs.results import heatmaps
from ad_jobs.results.run import (
    RunRecord,
    describe_heatmap_part,
    describe_parts,
    machine,
    read_record,
    versions,
    write_record,
)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    write_part(tmp_path, [scored(0), unscored(1, "empty")])
    written = record(tmp_path, 2)
    sealed = write_record(str(tmp_path), written)
    assert read_record(str(tmp_path)) == sealed
    assert sealed.model_copy(update={"digest": None}) == written
    assert written.counts.failed == 1


def test_parts_are_described_as_they_lie_there(tmp_path: Path) -> None:
    write_part(tmp_path, [scored(0), scored(1)], "part-b")
    write_part(tmp_path, [scored(2)], "part-a")
    (tmp_path / "scores" / "notes.txt").write_text("no part")
    parts = describe_parts(str(tmp_path))
    assert [(part.name, part.rows) for part in parts] == [("scores/part-a.parquet", 1), ("scores/part-b.parquet", 2)]
    for part in parts:
        data = (tmp_path / part.name).read_bytes()
        assert (part.sha256, part.bytes) == (hashlib.sha256(data).hexdigest(), len(data))


def test_heatmap_shards_are_described_as_they_lie_there(tmp_path: Path) -> None:
    png = heatmaps.encode_png(GEOMETRY.to_input(_ramp()), GEOMETRY)
    shard = heatmaps.pack([(heatmaps.member_name(i, 0), png) for i in range(3)])
    (tmp_path / "heatmaps").mkdir()
    (tmp_path / shard.name).write_bytes(shard.data)
    part = describe_heatmap_part(str(tmp_path), shard.name)
    assert part is not None
    assert (part.name, part.members, part.bytes) == (shard.name, 3, len(shard.data))
    assert part.sha256 == hashlib.sha256(shard.data).hexdigest()


def test_a_shard_that_is_cut_off_is_not_described(tmp_path: Path) -> None:
    png = heatmaps.encode_png(GEOMETRY.to_input(_ramp()), GEOMETRY)
    shard = heatmaps.pack([(heatmaps.member_name(i, 0), png) for i in range(3)])
    (tmp_path / "heatmaps").mkdir()
    (tmp_path / shard.name).write_bytes(shard.data[: shard.ranges[heatmaps.member_name(2, 0)][0] + 10])
    assert describe_heatmap_part(str(tmp_path), shard.name) is None


def _ramp() -> np.ndarray:
    return np.linspace(0, 1, GEOMETRY.rows * GEOMETRY.columns).reshape(GEOMETRY.rows, GEOMETRY.columns)


def test_a_run_without_parts_has_none(tmp_path: Path) -> None:
    assert describe_parts(str(tmp_path)) == []


def test_an_unfinished_run_is_refused_unless_allowed(tmp_path: Path) -> None:
    write_part(tmp_path, [scored(0)])
    with pytest.raises(UsageError, match="Run the same scan command again"):
        read_record(str(tmp_path))
    assert read_record(str(tmp_path), allow_unfinished=True) is None


@pytest.mark.parametrize("allow", [False, True])
def test_what_is_no_run_is_refused(tmp_path: Path, allow: bool) -> None:
    with pytest.raises(UsageError, match="that `retroscan scan --out` has written"):
        read_record(str(tmp_path / "nowhere"), allow_unfinished=allow)


def test_a_record_of_another_form_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path, [scored(0)])
    write_record(str(tmp_path), record(tmp_path, 1))
    path = tmp_path / "run.json"
    content = json.loads(path.read_text())
    for change in ({"version": 3}, {"surprise": 1}, {"run_id": None}, {"models": []}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(UsageError, match=next(iter(change))):
            read_record(str(tmp_path))
    path.write_text("{")
    with pytest.raises(UsageError, match=r"run\.json must have the form"):
        read_record(str(tmp_path))


def test_the_record_takes_no_unknown_key(tmp_path: Path) -> None:
    write_part(tmp_path, [scored(0)])
    content = record(tmp_path, 1).model_dump()
    content["counts"]["lost"] = 0
    with pytest.raises(ValueError, match="lost"):
        RunRecord.model_validate(content)


def test_versions_name_what_scores_depend_on_without_importing_it() -> None:
    code = (
        "import sys; from ad_jobs.results.run import versions; found = versions();"
        "print(sorted(found)); assert not {'torch', 'ray', 'pandas'} & set(sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    for name in ("python", "torch", "ray", "pyarrow", "pydicom", "python-gdcm"):
        assert f"'{name}'" in out
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_machine_names_the_gpus_it_is_told_of() -> None:
    found = machine(["Some GPU"])
    assert found["gpus"] == ["Some GPU"]
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1 << 26
    assert found["cpu"]
