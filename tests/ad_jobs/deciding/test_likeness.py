"""A run that is not like what it is judged by is told from one that is, whatever abnormal images it holds."""

from __future__ import annotations

import numpy as np
import pytest

from ad_jobs.deciding.likeness import Likeness, likeness
from ad_jobs.deciding.p_values import Reference


def of(run: np.ndarray, held_out: np.ndarray) -> Likeness:
    reference = Reference(held_out.astype(np.float32))
    return likeness(np.bincount(reference.levels(run.astype(np.float32)), minlength=reference.n + 1))


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
    found = likeness(np.array([0, 1, 0, 1]))
    assert (found.distance, found.significance) == (None, None)
    assert likeness(np.zeros(101, np.int64)).normal_share == 0
