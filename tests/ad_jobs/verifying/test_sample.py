"""Which objects a sample holds: drawn without reading the table whole, and alike by everyone who draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runkit import SECOND, record, scored, unscored, write_part

from ad_jobs.archive import marks
from ad_jobs.results.run import write_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.verifying import sample


@pytest.fixture
def table(tmp_path: Path) -> ScoreTable:
    """Forty objects of two frames, out of order; every eighth failed, the first of these in one frame alone."""
    rows = []
    for i in np.random.default_rng(0).permutation(40).tolist():
        if i % 8 == 0 and i:
            rows.append(unscored(i, "empty"))
        else:
            rows += [
                scored(i),
                scored(i, 1, **({"status": "failed", "error_code": "non_finite_score"} if i == 0 else {})),
            ]
    write_part(tmp_path, rows[:30], "part-0")
    write_part(tmp_path, rows[30:], "part-1")
    return ScoreTable(str(tmp_path), write_record(str(tmp_path), record(tmp_path, 40)))


def drawn(table: ScoreTable, count: int, seed: int = 0) -> list[int]:
    return sorted(set(sample.choose(table, 40, count, seed)["object_id"]))


def test_a_fifth_of_a_sample_is_without_a_score(table: ScoreTable) -> None:
    for seed in range(20):
        ids = drawn(table, 10, seed)
        assert len(ids) == 10
        assert sum(i % 8 == 0 for i in ids) == 2
    # Each is drawn by some seed.
    assert set().union(*(drawn(table, 10, seed) for seed in range(60))) == set(range(40))


def test_a_sample_as_large_as_the_run_is_all_of_it(table: ScoreTable) -> None:
    assert drawn(table, 1000) == list(range(40))
    assert drawn(table, 0) == []


def test_all_rows_of_an_object_come_in_order(table: ScoreTable) -> None:
    rows = sample.choose(table, 40, 40, 0)
    assert list(zip(rows.object_id, rows.frame, strict=True)) == sorted(zip(rows.object_id, rows.frame, strict=True))
    assert len(rows) == table.record.counts.rows


@pytest.mark.parametrize("piece", [1, 7, 40])
def test_pieces_draw_what_a_whole_draws(table: ScoreTable, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    expected = drawn(table, 12, 3)
    monkeypatch.setattr(marks, "PIECE", piece)
    assert drawn(table, 12, 3) == expected


def test_rows_of_no_object_of_the_manifest_are_not_drawn(table: ScoreTable, tmp_path: Path) -> None:
    write_part(tmp_path, [scored(i, model_id=SECOND) for i in (-1, 40, 7)], "part-2")
    strange = ScoreTable(table.uri, record(tmp_path, 40))
    assert drawn(strange, 1000) == list(range(40))


@pytest.mark.parametrize("then", [None, "constant_frame"])
def test_that_an_etag_is_another_now_is_no_difference(then: str | None) -> None:
    now = ", ".join(filter(None, [then, "etag_changed"]))
    assert sample._remarks(then) == sample._remarks(now) == ([] if then is None else [then])
