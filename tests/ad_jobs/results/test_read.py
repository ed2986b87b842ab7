"""The pandas face: rows in order with usable types, heatmaps by one ranged read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from runkit import GEOMETRY, record, scored, unscored, write_part

from ad_jobs.errors import JobError, UsageError
from ad_jobs.results import heatmaps, open_heatmap, read_run, read_scores
from ad_jobs.results.run import write_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.schema import SCORES
from cluster import storage


@pytest.fixture
def values() -> np.ndarray:
    rng = np.random.default_rng(5)
    shape = (GEOMETRY.height_px, GEOMETRY.width_px)
    return (rng.integers(0, 65536, shape) / 65535).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path, values: np.ndarray) -> Path:
    """Three objects in two parts, out of order; object 2 is flagged and has a heatmap."""
    names = [heatmaps.member_name(2, 0), heatmaps.member_name(2, 1)]
    maps = [values, values[::-1]]
    shard = heatmaps.pack([(n, heatmaps.encode_png(v, GEOMETRY)) for n, v in zip(names, maps, strict=True)])
    storage.write_bytes(str(tmp_path / shard.name), shard.data)
    write_part(tmp_path, [scored(2, 1, heatmap=shard.reference(names[1]), flagged=True), scored(0)], "part-0")
    write_part(tmp_path, [unscored(1, "empty"), scored(2, heatmap=shard.reference(names[0]))], "part-1")
    write_record(str(tmp_path), record(tmp_path, 3))
    return tmp_path


def test_scores_come_in_order_with_types_that_work(run: Path) -> None:
    table = read_scores(str(run))
    assert list(table.columns) == SCORES.names
    assert list(zip(table.object_id, table.frame, strict=True)) == [(0, 0), (1, 0), (2, 0), (2, 1)]
    assert (table.object_id.dtype, table.score.dtype) == (np.int64, np.float32)
    # A failed row's flag is null: it must neither count as flagged nor break the mask.
    assert table[table.flagged].object_id.tolist() == [2]
    assert pd.isna(table.flagged[1])
    assert table.error_code[1] == "empty"


def test_columns_come_as_asked_for(run: Path) -> None:
    assert list(read_scores(str(run), columns=["score", "uri"]).columns) == ["score", "uri"]
    with pytest.raises(UsageError, match="patient_name"):
        read_scores(str(run), columns=["patient_name"])


def test_a_condition_reads_the_columns_that_it_names_and_no_others(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []
    batches = ScoreTable.batches

    def counted(table: ScoreTable, columns: list[str]) -> Iterator[pa.RecordBatch]:
        read.append(list(columns))
        return batches(table, columns)

    monkeypatch.setattr(ScoreTable, "batches", counted)
    found = read_scores(str(run), columns=["frame", "uri"], where="flagged")
    assert found.to_dict("records") == [{"frame": 1, "uri": "/a/2"}]
    assert sorted(read[0]) == ["flagged", "frame", "model_id", "object_id", "uri"]


def test_a_stray_part_is_not_read(run: Path) -> None:
    write_part(run, [scored(0)], "part-stray")
    assert len(read_scores(str(run))) == 4


def test_a_part_that_is_gone_or_changed_is_an_error(run: Path) -> None:
    write_part(run, [scored(0)], "part-1")
    with pytest.raises(JobError, match="has 1 row"):
        read_scores(str(run))
    (run / "scores/part-1.parquet").unlink()
    with pytest.raises(JobError, match="cannot be read"):
        read_scores(str(run))
    (run / "scores/part-1.parquet").write_bytes(b"PAR1 no more PAR1")
    with pytest.raises(JobError, match="cannot be read"):
        read_scores(str(run))


def test_an_unfinished_run_is_read_only_if_allowed(run: Path) -> None:
    (run / "run.json").unlink()
    with pytest.raises(UsageError, match="finished"):
        read_scores(str(run))
    with pytest.raises(UsageError, match="finished"):
        read_run(str(run))
    assert len(read_scores(str(run), allow_unfinished=True)) == 4
    assert read_scores(str(run), allow_unfinished=True, where="status = 'failed'").object_id.tolist() == [1]


def test_an_empty_run_has_all_columns(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    write_record(str(tmp_path), record(tmp_path, 0))
    table = read_scores(str(tmp_path))
    assert list(table.columns) == SCORES.names
    assert len(table) == 0


def test_a_heatmap_is_one_ranged_read(run: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    fetch_range = storage.fetch_range

    def counted(uri: str, offset: int, length: int) -> bytes:
        reads.append((Path(uri).name, length))
        return fetch_range(uri, offset, length)

    monkeypatch.setattr(storage, "fetch_range", counted)
    references = read_scores(str(run)).heatmap.dropna().tolist()
    first, second = (open_heatmap(str(run), reference) for reference in references)
    assert len(reads) == 2
    np.testing.assert_array_equal(first.values, values)
    np.testing.assert_array_equal(second.values, values[::-1])
    assert first.geometry == GEOMETRY


def test_a_heatmap_lies_over_its_source(run: Path, values: np.ndarray) -> None:
    reference = read_scores(str(run)).heatmap.dropna().iloc[0]
    laid = open_heatmap(str(run), reference).on_source()
    assert laid.shape == (GEOMETRY.rows, GEOMETRY.columns)
    assert laid.dtype == np.float32
    np.testing.assert_allclose(laid, GEOMETRY.heatmap_to_source(values), atol=1e-6)


def test_a_heatmap_that_is_gone_or_cut_off_is_an_error(run: Path) -> None:
    reference = read_scores(str(run)).heatmap.dropna().iloc[0]
    shard = run / reference.partition("#")[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:600])
    with pytest.raises(JobError, match="cannot be read"):
        open_heatmap(str(run), reference)
    shard.write_bytes(whole[:100])
    with pytest.raises(JobError, match="cannot be read"):
        open_heatmap(str(run), reference)
    shard.unlink()
    with pytest.raises(JobError, match="is gone"):
        open_heatmap(str(run), reference)


@pytest.mark.s3
def test_a_run_on_s3_reads_like_a_local_one(run: Path, s3) -> None:
    uri = s3.put_folder(run, "results/run")
    pd.testing.assert_frame_equal(read_scores(uri), read_scores(str(run)))
    reference = read_scores(uri).heatmap.dropna().iloc[0]
    there, here = open_heatmap(uri, reference), open_heatmap(str(run), reference)
    np.testing.assert_array_equal(there.values, here.values)
    assert read_run(uri) == read_run(str(run))


def test_importing_the_face_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, ad_jobs.results; assert not {'torch', 'ray', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys; from ad_jobs.results import read_scores; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
