"""Drift: groups that are like the held-out normals are not called, however sick they are; a shifted scanner is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import driftkit
import numpy as np
import pyarrow as pa
import pytest
from runkit import MODEL
from scipy.stats import binom

from ad_jobs.archive.sql import Stream
from ad_jobs.deciding.drift import DRIFT, LEAST_STUDIES, drift, holm
from ad_jobs.deciding.normals import HeldOutNormals
from ad_jobs.results.score_table import Rows


class Made(Rows):
    """Rows in memory."""

    def __init__(self, *tables: pa.Table) -> None:
        self.table = pa.concat_tables(tables)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from self.table.select(list(columns)).to_batches(1000)


def drifts(groups: dict[str, np.ndarray], normals: np.ndarray, *, frames: int = 1) -> dict[str, dict[str, Any]]:
    """DRIFT of a run of these groups, by their values."""
    rows, start = [], 0
    for name, scores in groups.items():
        rows.append(driftkit.rows(scores, start, frames=frames, manufacturer=name))
        start += len(scores)
    held_out = HeldOutNormals(normals.astype(np.float32), len(normals) // frames)
    found = drift(Made(*rows), {MODEL: held_out}, None)
    assert found.schema.equals(DRIFT)
    return {row["value"]: row for row in found.to_pylist()}


@pytest.mark.parametrize("kind", ["continuous", "with ties", "of ten frames"])
def test_of_groups_that_are_like_the_held_out_normals_none_is_called_more_often_than_said(kind: str) -> None:
    frames = 10 if kind == "of ten frames" else 1
    runs, called, below = 25, 0, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)

        def draw(count: int, sick: float = 0.0, rng: np.random.Generator = rng) -> np.ndarray:
            studies = rng.normal(size=count) + 4.0 * (rng.random(count) < sick)
            scores = np.repeat(studies, frames) + 0.05 * rng.normal(size=count * frames)
            return np.round(scores * 4) / 4 if kind == "with ties" else scores

        # Every other group holds abnormal images, a third of one.
        groups = {f"maker {g}": draw(60 + 20 * g, sick=(g % 2) * g / 30) for g in range(10)}
        found = drifts(groups, draw(300), frames=frames)
        called += any(row["drifted"] for row in found.values())
        below += any(row["p_holm"] < 0.05 for row in found.values())
    assert called == 0
    # Of runs at most a share 0.05, within chance.
    assert below <= binom.ppf(0.999, runs, 0.05)


@pytest.mark.parametrize(
    ("shift", "spread", "how"), [(1.2, 1.0, "higher"), (6.0, 1.0, "higher"), (-1.0, 1.0, "lower"), (0.0, 1.8, "wider")]
)
def test_a_scanner_whose_scores_are_shifted_or_spread_otherwise_is_called_and_comes_first(
    shift: float, spread: float, how: str
) -> None:
    rng = np.random.default_rng(3)
    groups = {name: rng.normal(size=400) for name in ("a", "b", "c")} | {"odd": rng.normal(shift, spread, 400)}
    # It holds as many abnormal images as the others.
    groups = {name: np.append(scores, rng.normal(5, 1, 40)) for name, scores in groups.items()}
    found = drifts(groups, rng.normal(size=500))
    assert {name: row["drifted"] for name, row in found.items()} == {"a": None, "b": None, "c": None, "odd": how}
    assert next(iter(found)) == "odd"
    assert found["odd"]["p_holm"] < 0.01 < found["a"]["p_holm"]
    assert found["odd"]["effect"] > 0.1


def test_a_third_of_abnormal_images_is_no_drift_and_lies_in_the_last_tenth():
    rng = np.random.default_rng(5)
    (row,) = drifts(
        {"clinic": np.append(rng.normal(size=2000), rng.normal(4, 1, 1000))}, rng.normal(size=1000)
    ).values()
    assert row["drifted"] is None
    assert row["normal_share"] == pytest.approx(2 / 3, abs=0.08)
    assert sum(row["tenths"]) == pytest.approx(1)
    assert row["tenths"][-1] > 0.3
    assert all(share == pytest.approx(0.067, abs=0.02) for share in row["tenths"][:-1])
    assert row["flagged"] > 900


def test_a_study_is_one_witness_and_few_of_them_are_not_judged():
    rng = np.random.default_rng(6)
    one, few = np.repeat(rng.normal(3, 1, LEAST_STUDIES), 30), np.repeat(rng.normal(3, 1, LEAST_STUDIES - 1), 30)
    rows = driftkit.rows(one, frames=30, manufacturer="enough")
    others = driftkit.rows(few, len(one), frames=30, manufacturer="few")
    held_out = {MODEL: HeldOutNormals(rng.normal(size=300).astype(np.float32), 300)}
    enough, small = drift(Made(rows, others), held_out, None).to_pylist()
    assert (enough["value"], enough["studies"], enough["rows"]) == ("enough", LEAST_STUDIES, 30 * LEAST_STUDIES)
    # Of 600 independent rows p would be next to nothing.
    assert 1e-8 < enough["p"] < 0.01
    assert (small["studies"], small["p"], small["drifted"], small["effect"]) == (LEAST_STUDIES - 1, None, None, None)


def test_groups_are_months_makers_scanners_and_sites_and_what_has_no_value_is_in_none():
    rng = np.random.default_rng(7)
    rows = [
        driftkit.rows(rng.normal(size=30), study_month="2024-01", manufacturer="A"),
        driftkit.rows(rng.normal(size=30), 30, study_month="2024-02"),
        driftkit.rows(rng.normal(size=30), 60),
    ]
    scanners = pa.table(
        {"object_id": list(range(90)), "model": ["Skyra"] * 45 + [None] * 45, "site": [None] * 60 + ["North"] * 30}
    )
    held_out = {MODEL: HeldOutNormals(rng.normal(size=99).astype(np.float32), 99)}
    found = drift(Made(*rows), held_out, Stream.of(scanners)).to_pylist()
    assert {(row["by"], row["value"], row["rows"]) for row in found} == {
        ("study_month", "2024-01", 30),
        ("study_month", "2024-02", 30),
        ("manufacturer", "A", 30),
        ("model", "Skyra", 45),
        ("site", "North", 30),
    }


def test_holm_by_hand():
    # Holm 1979: 0.01 * 4, 0.013 * 3 raised to it, 0.03 * 2, 0.5.
    assert holm([0.03, 0.01, 0.5, 0.013]) == pytest.approx([0.06, 0.04, 0.5, 0.04])
    assert holm([]) == []
