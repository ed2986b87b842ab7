"""Thresholds and their intervals: known values, exact rates, ties, and what must hold whatever the scores are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import binom

from ad_jobs.errors import UsageError
from ad_jobs.scoring.thresholds import SMALL, clopper_pearson, threshold_for_fnr, threshold_for_fpr

Scores = NDArray[np.float32]
DOWN, UP = np.float32(-np.inf), np.float32(np.inf)


def scores_of(smallest: int, largest: int) -> st.SearchStrategy[Scores]:
    """Float32 scores of any size and sign, with ties."""
    value = st.one_of(
        st.floats(-1e6, 1e6, width=32, allow_subnormal=False), st.sampled_from([0.0, 0.25, 1.0, 1.0000001192092896])
    )
    return st.integers(smallest, largest).flatmap(lambda n: arrays(np.float32, n, elements=value))


RATES = st.one_of(st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0]), st.floats(0, 1))


def share_above(scores: Scores, threshold: float) -> float:
    return float((scores > np.float32(threshold)).mean())


# --- Clopper-Pearson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Closed form: none of n.
        (0, 10, 0.0, 1 - 0.025 ** (1 / 10)),
        (10, 10, 0.025 ** (1 / 10), 1.0),
        (0, 100, 0.0, 0.0362167),
        (5, 10, 0.1870860, 0.8129140),
        (1, 100, 0.0002531, 0.0544594),
        (1, 1, 0.025, 1.0),
    ],
)
def test_clopper_pearson_against_known_values(hits: int, n: int, low: float, high: float):
    assert clopper_pearson(hits, n) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_is_where_either_tail_has_two_and_a_half_percent(trial: tuple[int, int]):
    hits, n = trial
    low, high = clopper_pearson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    if hits > 0:
        assert binom.sf(hits - 1, n, low) == pytest.approx(0.025, abs=1e-6)
    if hits < n:
        assert binom.cdf(hits, n, high) == pytest.approx(0.025, abs=1e-6)


def test_no_trial_says_nothing():
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_more_confidence_is_a_wider_interval():
    narrow, wide = clopper_pearson(3, 50, 0.9), clopper_pearson(3, 50, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


# --- A false-positive rate


@pytest.mark.parametrize(
    ("max_fpr", "threshold", "rate"),
    [(0.01, 198.0, 0.01), (0.05, 190.0, 0.05), (0.0, 200.0, 0.0), (0.0049, 200.0, 0.0), (0.5, 100.0, 0.5)],
)
def test_threshold_at_exact_rates(max_fpr: float, threshold: float, rate: float):
    found = threshold_for_fpr(np.arange(1, 201, dtype=np.float32), max_fpr)
    assert (found.threshold, found.rate, found.method) == (threshold, rate, "quantile")
    assert (found.rate_low, found.rate_high) == clopper_pearson(round(rate * 200), 200)
    assert (found.rule, found.target) == ("max_fpr", max_fpr)


@pytest.mark.parametrize("n", [100, 300, 700, 1000])
@pytest.mark.parametrize("max_fpr", [0.01, 0.07, 0.29, 0.57])
def test_rates_that_binary_fractions_miss_are_still_met(n: int, max_fpr: float):
    """0.07 * 100 is 7.000000000000001, 0.29 * 100 is 28.999999999999996: both mean what they say."""
    found = threshold_for_fpr(np.arange(n, dtype=np.float32), max_fpr)
    assert found.rate == pytest.approx(max_fpr)


def test_ties_at_the_threshold_are_not_flagged():
    normal = np.array([0.1] * 150 + [0.5] * 50, np.float32)
    found = threshold_for_fpr(normal, 0.1)
    assert found.threshold == float(np.float32(0.5))
    assert found.rate == 0.0


@given(scores_of(100, 300), RATES)
def test_no_more_normals_are_flagged_than_allowed_and_no_fewer_than_possible(normal: Scores, max_fpr: float):
    found = threshold_for_fpr(normal, max_fpr)
    assert found.rate <= max_fpr + 1e-9
    assert found.rate == share_above(normal, found.threshold)
    assert found.method == "quantile"
    # One step of float32 lower would flag too many, unless all are flagged already.
    lower = float(np.nextafter(np.float32(found.threshold), DOWN))
    assert found.rate == 1.0 or share_above(normal, lower) > max_fpr


@given(scores_of(1, 99), RATES)
def test_few_normals_are_never_flagged_beyond_the_rate_either(normal: Scores, max_fpr: float):
    found = threshold_for_fpr(normal, max_fpr)
    assert found.rate <= max_fpr + 1e-9
    assert np.isfinite(found.threshold)
    assert found.rate_low <= found.rate <= found.rate_high


@given(scores_of(1, 300), RATES)
def test_thresholds_are_float32_as_the_table_of_scores_is(normal: Scores, rate: float):
    for found in (threshold_for_fpr(normal, rate), threshold_for_fnr(normal, rate)):
        assert float(np.float32(found.threshold)) == found.threshold


@given(scores_of(100, 200), RATES, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(normal: Scores, rate: float, random):
    shuffled = list(normal)
    random.shuffle(shuffled)
    assert threshold_for_fpr(np.array(shuffled, np.float32), rate) == threshold_for_fpr(normal, rate)


def test_below_a_hundred_normals_the_mean_and_three_deviations_decide_where_that_is_higher():
    normal = np.random.default_rng(0).normal(10, 1, SMALL - 1).astype(np.float32)
    found = threshold_for_fpr(normal, 0.01)
    expected = normal.astype(np.float64).mean() + 3 * normal.astype(np.float64).std(ddof=1)
    assert found.method == "mean_plus_3_sd"
    assert found.threshold == pytest.approx(expected, rel=1e-6)
    # Rounded up to float32, never down.
    assert found.threshold >= expected
    assert found.rate == 0.0
    # The interval still says how little 99 images prove.
    assert found.rate_high == pytest.approx(1 - 0.025 ** (1 / 99))


def test_from_a_hundred_normals_on_the_quantile_decides():
    normal = np.random.default_rng(0).normal(10, 1, SMALL).astype(np.float32)
    found = threshold_for_fpr(normal, 0.01)
    assert found.method == "quantile"
    assert found.threshold == float(np.sort(normal)[-2])


def test_few_normals_with_an_outlier_keep_their_maximum():
    """Three deviations can lie below the largest score; it must not be flagged for that."""
    normal = np.array([0.0] * 60 + [1.0], np.float32)
    found = threshold_for_fpr(normal, 0.01)
    assert (found.threshold, found.method, found.rate) == (1.0, "quantile", 0.0)


def test_few_normals_with_a_rate_within_the_sample_use_the_quantile():
    found = threshold_for_fpr(np.arange(1, 51, dtype=np.float32), 0.1)
    assert (found.threshold, found.method, found.rate) == (45.0, "quantile", 0.1)


def test_one_normal_sets_its_own_score():
    found = threshold_for_fpr(np.array([0.3], np.float32), 0.01)
    assert found.threshold == float(np.float32(0.3))


def test_a_rate_of_one_flags_everything():
    normal = np.array([0.25, 0.5, 0.25] * 40, np.float32)
    assert threshold_for_fpr(normal, 1.0).rate == 1.0


# --- A false-negative rate


@pytest.mark.parametrize(("max_fnr", "lowest"), [(0.0, 1.0), (0.01, 2.0), (0.1, 11.0), (0.5, 51.0)])
def test_threshold_lies_just_below_the_lowest_that_must_be_flagged(max_fnr: float, lowest: float):
    found = threshold_for_fnr(np.arange(1, 101, dtype=np.float32), max_fnr)
    assert found.threshold == float(np.nextafter(np.float32(lowest), DOWN))
    assert found.rate == pytest.approx(max_fnr)
    assert (found.rule, found.method) == ("max_fnr", "lowest_anomalous")


@given(scores_of(1, 200), st.floats(0, 0.999))
def test_no_more_anomalous_images_are_missed_than_allowed_and_no_fewer_than_possible(anomalous: Scores, max_fnr: float):
    found = threshold_for_fnr(anomalous, max_fnr)
    assert found.rate <= max_fnr + 1e-9
    assert found.rate == pytest.approx(1 - share_above(anomalous, found.threshold))
    higher = float(np.nextafter(np.float32(found.threshold), UP))
    assert 1 - share_above(anomalous, higher) > max_fnr - 1e-9


@given(scores_of(1, 100), st.floats(0, 0.5), st.floats(0.01, 1))
def test_a_margin_only_lowers_the_threshold(anomalous: Scores, max_fnr: float, margin: float):
    plain, lowered = threshold_for_fnr(anomalous, max_fnr), threshold_for_fnr(anomalous, max_fnr, margin)
    assert lowered.threshold <= plain.threshold
    assert lowered.rate <= plain.rate


def test_a_margin_is_a_share_of_the_scores_height_below_zero_too():
    for score in (8.0, -8.0):
        found = threshold_for_fnr(np.array([score], np.float32), 0.0, 0.25)
        assert found.threshold == pytest.approx(score - 2.0)


@pytest.mark.parametrize("rule", [threshold_for_fpr, threshold_for_fnr])
def test_no_image_is_a_usage_error(rule):
    with pytest.raises(UsageError, match=r"needs .* images\. Got: none that decode\. Name some with --"):
        rule(np.array([], np.float32), 0.01)
