"""p-values are those that counting gives, q-values those of Benjamini and Hochberg, and both keep their word."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ad_jobs.deciding.p_values import Reference, q_values


def scores(seed: int, n: int) -> NDArray[np.float32]:
    # With ties.
    return np.random.default_rng(seed).normal(size=n).round(1).astype(np.float32)


def step_up(p: NDArray[np.float64], rate: float) -> NDArray[np.bool_]:
    """Benjamini and Hochberg's procedure as it is written, over single rows."""
    ordered = np.sort(p)
    passed = [k for k in range(1, len(p) + 1) if ordered[k - 1] <= k / len(p) * rate]
    return p <= ordered[passed[-1] - 1] if passed else np.zeros(len(p), bool)


def test_p_counts_the_held_out_normals_that_score_as_high() -> None:
    held_out, run = scores(0, 40), scores(1, 200)
    reference = Reference(held_out)
    found = reference.p()[reference.levels(run)]
    np.testing.assert_allclose(found, [(1 + (held_out >= score).sum()) / 41 for score in run])
    assert reference.smallest == 1 / 41


def test_above_the_threshold_of_a_level_lie_it_and_those_before() -> None:
    held_out, run = scores(2, 40), scores(3, 200)
    reference = Reference(held_out)
    for level in range(41):
        np.testing.assert_array_equal(run > reference.threshold(level), reference.levels(run) <= level)


def test_a_reference_needs_a_score() -> None:
    with pytest.raises(ValueError, match="needs a score"):
        Reference(np.zeros(0, np.float32))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.3, 0.9])
def test_q_flags_what_the_step_up_procedure_flags(rate: float) -> None:
    held_out, run = scores(4, 60), np.concatenate([scores(5, 150), 3 + scores(6, 50)])
    reference = Reference(held_out)
    levels = reference.levels(run)
    q = q_values(np.bincount(levels, minlength=61))
    assert (np.diff(q) >= 0).all()
    assert q.max() <= 1
    np.testing.assert_array_equal(q[levels] <= rate, step_up(reference.p()[levels], rate))


def test_no_row_has_no_q_below_one() -> None:
    assert (q_values(np.zeros(5, np.int64)) == 1).all()


def test_what_is_promised_holds_over_many_draws() -> None:
    rng = np.random.default_rng(7)
    rates, discoveries = [], []
    for _ in range(400):
        normal = rng.normal(size=300).astype(np.float32)
        reference = Reference(normal[:100])
        run = np.concatenate([normal[100:], rng.normal(3, size=50).astype(np.float32)])
        levels = reference.levels(run)
        rates.append((reference.p()[levels[:200]] <= 0.05).mean())
        flagged = q_values(np.bincount(levels, minlength=101))[levels] <= 0.1
        discoveries.append(flagged[:200].sum() / max(flagged.sum(), 1))
    # (n + 1) a is whole, so that the first holds exactly; four standard errors.
    assert np.mean(rates) == pytest.approx(5 / 101, abs=4 * np.std(rates) / 20)
    assert np.mean(discoveries) <= 0.1 + 4 * np.std(discoveries) / 20
    assert np.mean(discoveries) > 0.03


def test_a_rate_that_is_met_exactly_is_met() -> None:
    # 18 of 270 rows at p = 1/50: 270 / (50 x 18) = 0.3, which is not what its factors come to in floating point.
    counts = np.zeros(50, np.int64)
    counts[0], counts[-1] = 18, 252
    assert q_values(counts)[0] == 0.3


def test_levels_end_where_scores_differ() -> None:
    assert Reference(np.array([1, 2, 2, 2, 3], np.float32)).apart().tolist() == [True, True, False, False, True, True]
