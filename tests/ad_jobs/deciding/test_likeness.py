"""A run that is not like what it is judged by is told from one that is, whatever abnormal images it holds."""

from __future__ import annotations

import numpy as np
import pytest

from ad_jobs.deciding.likeness import Likeness, likeness
from ad_jobs.deciding.p_values import Reference


def of(run: np.ndarray, held_out: np.ndarray) -> Likeness:
    reference = Reference(held_out.astype(np.float32))
    counts = np.bincount(reference.levels(run.astype(np.float32)), minlength=reference.n + 1)
    return likeness(counts, reference)


@pytest.mark.parametrize("seed", range(20))
def test_a_run_with_abnormal_images_is_like_its_normals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = of(np.concatenate([rng.normal(size=900), rng.normal(4, size=100)]), rng.normal(size=300))
    assert found.doubtful is None
    assert found.normal_share == pytest.approx(0.9, abs=0.15)


def test_a_run_of_other_images_is_not() -> None:
    rng = np.random.default_rng(0)
    shifted = of(rng.normal(1.5, size=1000), rng.normal(size=300))
    assert "another kind of images" in str(shifted.doubtful)
    narrow = of(np.concatenate([rng.normal(-0.5, 0.05, size=500), rng.normal(0.5, size=500)]), rng.normal(size=300))
    assert "spread otherwise" in str(narrow.doubtful)


def test_few_tell_nothing_of_their_spread() -> None:
    found = of(np.array([0.5, 3.0]), np.array([1.0, 2.0, 3.0]))
    assert (found.distance, found.significance) == (None, None)
    assert likeness(np.zeros(101, np.int64), Reference(np.arange(100, dtype=np.float32))) == (None,) * 4


@pytest.mark.parametrize("rows", [1, 3, 10, 50, 1000])
@pytest.mark.parametrize("n", [1, 4, 30, 1000])
def test_few_rows_or_few_held_out_images_are_no_reason_to_doubt(rows: int, n: int) -> None:
    rng = np.random.default_rng(rows)
    doubted = [of(rng.normal(size=rows), rng.normal(size=n)).doubtful is not None for _ in range(100)]
    assert sum(doubted) <= 1


@pytest.mark.parametrize("zeros", [0.3, 0.6, 1.0])
def test_equal_scores_are_no_reason_to_doubt(zeros: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        run, held_out = (np.where(rng.random(size) < zeros, 0, rng.random(size)) for size in (1000, 200))
        assert of(run, held_out).doubtful is None
    coins = of(rng.integers(0, 2, 1000), rng.integers(0, 2, 200))
    assert coins.doubtful is None
