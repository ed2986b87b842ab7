"""The report's section on drift, and the table beside the page."""

from __future__ import annotations

from pathlib import Path

import driftkit
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pagekit import Page
from runkit import MODEL

from ad_jobs.deciding.drift import DRIFT
from ad_jobs.page.drift import tenths
from ad_jobs.report import report
from benchmarks.made import numbered, write_manifest


def made(folder: Path, *, normals: bool = True) -> str:
    rng = np.random.default_rng(0)
    rows = [
        driftkit.rows(rng.normal(size=60), manufacturer="Alike"),
        driftkit.rows(rng.normal(6, 1, 60), 60, manufacturer="Odd <b>"),
        driftkit.rows(rng.normal(size=5), 120, manufacturer="Few"),
    ]
    return driftkit.finished(folder, rows, rng.normal(size=200) if normals else None)


def page_of(run: str) -> Page:
    page = Page(Path(report(run=run)).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_draws_groups_the_farthest_first_and_the_table_has_all(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    page = page_of(run)
    assert "1 of 2 groups drifted" in page.text
    assert "1 of fewer than 20 studies were not judged" in page.text
    assert page.text.index("Odd <b>") < page.text.index("Alike")
    assert "scores higher" in page.text
    labels = page.values("svg", "aria-label")
    assert sum("by tenths of the held-out normals" in label for label in labels) == 2
    table = pq.read_table(Path(run) / "drift.parquet")
    assert table.schema.equals(DRIFT)
    assert [(row["value"], row["drifted"]) for row in table.to_pylist()] == [
        ("Odd <b>", "higher"),
        ("Alike", None),
        ("Few", None),
    ]


def test_a_run_without_groups_or_held_out_scores_has_no_such_section(tmp_path: Path) -> None:
    page = page_of(made(tmp_path / "run", normals=False))
    assert "Drift" not in page.text
    assert pq.read_table(tmp_path / "run" / "drift.parquet").num_rows == 0


def test_held_out_scores_that_were_changed_are_told_in_its_place(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    (Path(run) / "calibrations" / f"{MODEL}.parquet").write_bytes(b"other")
    page = page_of(run)
    assert "another digest than its calibration tells" in page.text
    assert "groups drifted" not in page.text


def test_bars_beyond_the_scale_are_cut_and_the_upper_half_stands_back() -> None:
    drawn = str(tenths([0.05] * 9 + [0.55], "maker X"))
    assert drawn.count('class="bar aside"') == 5
    assert "55.0% of the rows in tenth 10" in drawn
    heights = [float(part.split('"')[0]) for part in drawn.split('height="')[1:]]
    assert max(heights) <= 110


def test_sites_of_the_manifest_are_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def columns(ids: NDArray[np.int64]) -> dict[str, pa.Array]:
        sites = pa.array(["North Hospital" if i < 60 else "South Clinic" for i in ids])
        return {"uri": numbered("/a/", ids, 6, ""), "etag": pa.array(["e"] * len(ids)), "site": sites}

    info = write_manifest("/a", tmp_path / "manifest", 120, columns, headers=True)
    rows = [driftkit.rows(rng.normal(size=60)), driftkit.rows(rng.normal(3, 1, 60), 60)]
    run = driftkit.finished(tmp_path / "run", rows, rng.normal(size=200), manifest=(info.uri, info.digest))
    page = page_of(run)
    assert "1 of 2 groups drifted" in page.text
    titles = [label.partition(" by tenths")[0] for label in page.values("svg", "aria-label") if " by tenths" in label]
    assert titles == ["Scores of site South Clinic", "Scores of site North Hospital"]
