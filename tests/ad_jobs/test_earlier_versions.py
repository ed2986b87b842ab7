"""Models and runs that an earlier version wrote are read, or refused with a sentence that says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ad_jobs.errors import UsageError
from ad_jobs.report import report
from ad_jobs.results.handle import Run, open_run
from ad_jobs.score import score
from ad_jobs.scoring.model_store import open_model, read_model

FIXTURES = Path(__file__).parents[1] / "fixtures" / "format_1"
# Kernels differ with the CPU and the batch, and round otherwise.
TOLERANCE = 1e-5
NORMAL, ABNORMAL = range(100, 106), range(200, 202)


def picture(number: int) -> np.ndarray:
    """The grey picture [48, 32] of this number, as it was scanned."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:48, 0:32]
    values = 120 + 60 * np.sin(x / 5 + rng.uniform(0, 0.4)) + 30 * np.cos(y / 7) + rng.normal(0, 6, (48, 32))
    if number in ABNORMAL:
        values[16:28, 10:20] = 250
    return values.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for number in (*NORMAL, *ABNORMAL):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    shutil.copytree(FIXTURES / "run", tmp_path / "run")
    return open_run(tmp_path / "run")


def by_name(rows: pd.DataFrame, model_id: str) -> dict[str, tuple[float, bool]]:
    of_model = rows[(rows["model_id"] == model_id) & (rows["status"] == "scored")]
    return {Path(row.uri).name: (row.score, bool(row.flagged)) for row in of_model.itertuples()}


@pytest.mark.parametrize(("folder", "kind"), [("fyd", "padim")])
def test_a_model_scores_as_it_did(archive: Path, run: Run, folder: str, kind: str) -> None:
    then = by_name(run.scores(), read_model(str(FIXTURES / folder)).model_id)
    assert len(then) == len(NORMAL) + len(ABNORMAL)
    images = [str(archive / name) for name in then]
    now = score(model=str(FIXTURES / folder), images=images)
    np.testing.assert_allclose(
        [row["score"] for row in now], [value for value, _ in then.values()], rtol=TOLERANCE, atol=TOLERANCE
    )
    assert [row["flagged"] for row in now] == [flagged for _, flagged in then.values()]
    assert type(open_model(str(FIXTURES / folder)).detector).__module__ == f"models.{kind}"


@pytest.mark.parametrize(("folder", "option"), [("fyd-contrast", "contrast"), ("ssm", "cell_weights")])
def test_a_model_of_a_method_that_changed_is_refused_with_what_to_do(folder: str, option: str) -> None:
    with pytest.raises(UsageError, match=rf"{option}.*fit again"):
        open_model(str(FIXTURES / folder))


def test_a_run_is_read(run: Run) -> None:
    rows = run.scores(columns=["object_id", "model_id", "status", "error_code", "heatmap", "frame", "uri"])
    counts = run.record.counts
    assert (counts.objects, counts.scored, counts.failed, len(rows)) == (9, 8, 1, 18)
    assert rows.loc[rows["status"] == "failed", "error_code"].unique().tolist() == ["truncated"]
    kept = rows[rows["heatmap"].notna()]
    assert len(kept) == counts.heatmaps
    assert run.heatmap(kept.iloc[0]).values.shape == (32, 32)
    assert run.dataset().count_rows() == 18
    # The objects are gone, and the page says so instead of showing them.
    page = Path(report(run=run.uri)).read_text()
    assert "101.png" in page
