"""A run as an object: its table whole, in part and as a dataset, and a row's heatmap and picture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import fake_run
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fake_run import FakeRun

from ad_jobs.results.run import read_record, write_record
from ad_jobs.schema import SCORES
from retroscan import ImageError, JobError, Run, StorageError, UsageError, open_run, read_scores

OBJECTS = 12 + 6 + 2 + 1


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    """18 pictures, two failed objects and a skipped one; all heatmaps kept."""
    return fake_run.make(tmp_path_factory.mktemp("fake"), failed=("empty", "truncated"), skipped=1)


@pytest.fixture(scope="module")
def run(fake: FakeRun) -> Run:
    return open_run(fake.uri)


def row_of(run: Run, name: str) -> pd.Series:
    table = run.scores()
    return table[table.uri.str.endswith(name)].iloc[0]


def test_a_run_says_what_it_is(run: Run, fake: FakeRun) -> None:
    flagged = sum(score > 0.55 for score in fake.scores.values())
    assert 0 < flagged < len(fake.scores)
    assert repr(run) == f"Run({fake.uri!r}: {OBJECTS} objects, {OBJECTS} rows, {flagged} flagged)"
    assert run.record.counts.failed == 2
    assert run.record.run_id == "run-20250304-093000"


def test_a_place_may_be_spelled_as_its_user_does(fake: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(fake.uri)
    monkeypatch.chdir(folder.parent)
    assert open_run(folder).uri == open_run("run/").uri == fake.uri


def test_the_whole_table_is_that_of_read_scores(run: Run, fake: FakeRun) -> None:
    table = run.scores()
    pd.testing.assert_frame_equal(table, read_scores(fake.uri))
    assert list(table.columns) == SCORES.names
    assert len(table) == OBJECTS


def test_a_condition_gives_the_rows_that_pandas_would(run: Run) -> None:
    table = run.scores()
    pd.testing.assert_frame_equal(run.scores(where="flagged"), table[table.flagged].reset_index(drop=True))
    hot = run.scores(where="score > 0.4 AND status = 'scored' -- a remark", columns=["score", "uri"])
    assert list(hot.columns) == ["score", "uri"]
    expected = table[(table.score > 0.4).fillna(False)]
    assert hot.uri.tolist() == expected.uri.tolist()
    assert run.scores(where='"rows" IS NULL').status.tolist() == ["failed", "failed", "skipped"]
    none = run.scores(where="error_code = 'corrupt'")
    assert none.empty
    assert none.dtypes.equals(table.dtypes)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("patient_name = 'x'", "patient_name"),
        ("score >", "SQL condition over the scores"),
        ("true); DROP TABLE scores; --", "SQL condition"),
        ("uri IN (SELECT content FROM read_text('/etc/hostname'))", "SQL condition over the scores"),
    ],
)
def test_what_is_no_condition_over_the_table_is_refused(run: Run, where: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run.scores(where=where)


def test_a_column_that_is_not_there_is_refused_with_those_that_are(run: Run) -> None:
    with pytest.raises(UsageError, match=r"Got: patient_name\. Known are object_id"):
        run.scores(columns=["patient_name"])
    with pytest.raises(UsageError, match="patient_name"):
        run.scores(columns=["patient_name"], where="flagged")


def test_the_dataset_streams_the_listed_parts_and_no_others(fake: FakeRun, run: Run) -> None:
    stray = Path(fake.uri, "scores", "part-stray.parquet")
    pq.write_table(SCORES.empty_table(), stray)
    try:
        dataset = run.dataset()
        assert dataset.schema.equals(SCORES)
        assert [Path(file).name for file in dataset.files] == ["part-00000.parquet"]
    finally:
        stray.unlink()
    assert dataset.count_rows() == OBJECTS
    flagged = dataset.to_table(columns=["uri"], filter=pc.field("flagged"))
    assert sorted(flagged["uri"].to_pylist()) == sorted(run.scores(where="flagged").uri)


READERS = [Run.scores, partial(Run.scores, where="flagged"), Run.dataset]


@pytest.mark.parametrize("read", READERS, ids=("table", "condition", "dataset"))
def test_a_part_that_is_gone_or_has_lost_rows_is_said(read: Callable[[Run], object], tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path)
    run = open_run(fake.uri)
    part = Path(fake.uri, "scores", "part-00000.parquet")
    pq.write_table(pq.read_table(part).slice(1), part)
    with pytest.raises(JobError, match=r"17 rows, and run\.json lists 18"):
        read(run)
    part.unlink()
    with pytest.raises(JobError, match=r"part-00000\.parquet"):
        read(run)


def test_a_rows_heatmap_is_what_the_scan_kept(run: Run, fake: FakeRun) -> None:
    heatmap = run.heatmap(row_of(run, "defect 013.png"))
    np.testing.assert_allclose(heatmap.values, fake.heatmaps["defect 013.png"], atol=1e-7)
    assert heatmap.values.dtype == np.float32
    assert heatmap.values.shape == (48, 64)
    assert heatmap.on_source().shape == (fake_run.ROWS, fake_run.COLUMNS)
    as_a_mapping = {"heatmap": row_of(run, "defect 013.png").heatmap}
    np.testing.assert_array_equal(run.heatmap(as_a_mapping).values, heatmap.values)


def test_a_row_without_a_heatmap_is_refused_with_the_option_that_keeps_it(run: Run) -> None:
    failed = run.scores(where="error_code = 'truncated'").iloc[0]
    with pytest.raises(UsageError, match=r"object 19, frame 0, .*--heatmaps all"):
        run.heatmap(failed)


def test_a_heatmap_whose_shard_is_gone_is_said(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path)
    run = open_run(fake.uri)
    row = run.scores().iloc[0]
    next(Path(fake.uri, "heatmaps").iterdir()).unlink()
    with pytest.raises(JobError, match="is gone"):
        run.heatmap(row)


def test_a_rows_picture_is_the_one_it_was_scored_from(run: Run, fake: FakeRun) -> None:
    image = run.image(row_of(run, "defect 013.png"))
    assert (image.shape, image.dtype) == ((fake_run.ROWS, fake_run.COLUMNS, 3), np.uint8)
    lesion = fake.masks["defect 013.png"]
    assert image[lesion].mean() > image[~lesion].mean()
    assert (image[..., 0] == image[..., 2]).all()


def test_a_picture_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path)
    run = open_run(fake.uri)
    gone, damaged = run.scores().iloc[0], run.scores().iloc[1]
    Path(gone.uri).unlink()
    Path(damaged.uri).write_bytes(b"no picture any more")
    with pytest.raises(StorageError):
        run.image(gone)
    with pytest.raises(ImageError, match="unknown_format"):
        run.image(damaged)


def test_a_hashed_uri_leads_to_no_picture(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, uris="hashed:")
    record = read_record(fake.uri)
    write_record(fake.uri, record.model_copy(update={"config": record.config | {"identifiers": "hashed"}}))
    run = open_run(fake.uri)
    with pytest.raises(UsageError, match="manifest"):
        run.image(run.scores().iloc[0])


def test_a_run_that_is_unfinished_or_none_is_not_opened(tmp_path: Path) -> None:
    unfinished = fake_run.make(tmp_path / "unfinished", finish=False)
    with pytest.raises(UsageError, match="same scan command again"):
        open_run(unfinished.uri)
    with pytest.raises(UsageError, match="retroscan scan --out"):
        open_run(tmp_path)
