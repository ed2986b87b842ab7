"""What of a run's flags is out of all proportion, and which group holds most of them."""

from __future__ import annotations

from pathlib import Path

import driftkit
import numpy as np
import pytest
from pagekit import Page

from ad_jobs.deciding.proportion import OutOfProportion, out_of_proportion
from ad_jobs.report import report
from ad_jobs.results.run import read_record
from ad_jobs.results.score_table import ScoreTable


def told(run: str) -> list[OutOfProportion]:
    record = read_record(run)
    return out_of_proportion(ScoreTable(run, record), run, record)


def mixed(folder: Path, share: float, *, others: str = "CR", normals: int = 500) -> str:
    """A run of 1,000 images of which a share is of another modality, and all of these are flagged."""
    rng = np.random.default_rng(0)
    many = int(share * 1000)
    rows = [
        driftkit.rows(rng.normal(size=1000 - many), modality="MR", manufacturer="A"),
        driftkit.rows(rng.normal(9, 1, many), 1000 - many, modality=others, manufacturer="A"),
    ]
    return driftkit.finished(folder, rows, rng.normal(size=normals))


def test_most_of_a_mixed_archive_flagged_is_said_with_the_group_that_holds_them(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run", 0.61)
    (found,) = told(run)
    assert found.rows == 1000
    assert found.flagged == pytest.approx(612, abs=6)
    assert found.group is not None
    assert found.group == ("modality", "CR", 610, 610)
    assert "flags 61% of 1,000 images" in found.text
    assert "Most of them are of modality CR: 610 of 610 flagged" in found.text
    assert "retroscan calibrate /model --normal SOURCE" in found.text
    assert "--where \"modality = 'CR'\"" in found.text
    assert found.told()["group"]["value"] == "CR"
    page = Page(Path(report(run=run)).read_text(encoding="utf-8"))
    assert "OUT OF PROPORTION" in page.text


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_an_archive_with_some_abnormal_images_is_no_matter(tmp_path: Path, share: float) -> None:
    assert told(mixed(tmp_path / "run", share)) == []


def test_a_group_that_is_flagged_as_others_are_is_not_blamed(tmp_path: Path) -> None:
    (found,) = told(mixed(tmp_path / "run", 0.61, others="MR"))
    assert found.group is None
    assert "No modality, maker or kind of file stands out." in found.text


def test_few_held_out_normals_promise_little(tmp_path: Path) -> None:
    # None of five above the threshold still allows a half.
    assert told(mixed(tmp_path / "run", 0.49, normals=5)) == []


def test_nothing_is_told_without_held_out_scores_or_a_calibration(tmp_path: Path) -> None:
    rows = [driftkit.rows(np.full(100, 9.0), modality="MR")]
    assert told(driftkit.finished(tmp_path / "run", rows, None)) == []
