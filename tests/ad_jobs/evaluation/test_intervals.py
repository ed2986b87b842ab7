"""Intervals: bootstrap by whole groups, against published variances, and exact ones of rates."""

import numpy as np
import pytest

from ad_jobs.evaluation.image_metrics import image_metrics
from ad_jobs.evaluation.intervals import poisson_weights, rate, resample


def scored_images(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    anomalous = rng.random(n) < 0.3
    return rng.normal(size=n) + anomalous, anomalous


class TestBootstrap:
    def test_same_seed_same_interval_and_another_seed_another(self):
        scores, anomalous = scored_images(3)
        first = image_metrics(scores, anomalous, seed=1, bootstrap=200)
        assert image_metrics(scores, anomalous, seed=1, bootstrap=200) == first
        assert image_metrics(scores, anomalous, seed=2, bootstrap=200) != first

    def test_interval_of_auroc_agrees_with_hanley_and_mcneil(self):
        scores, anomalous = scored_images(4, n=2000)
        estimate = image_metrics(scores, anomalous, bootstrap=500)["image_auroc"]
        a, positives, negatives = estimate["value"], anomalous.sum(), (~anomalous).sum()
        q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
        variance = (a * (1 - a) + (positives - 1) * (q1 - a * a) + (negatives - 1) * (q2 - a * a)) / (
            positives * negatives
        )
        width = 2 * 1.96 * np.sqrt(variance)
        assert estimate["high"] - estimate["low"] == pytest.approx(width, rel=0.25)

    def test_every_replicate_has_both_classes_and_keeps_groups_whole(self):
        anomalous = np.array([0, 0, 0, 1, 1, 0, 1], dtype=bool)
        groups = ["a", "a", "b", "c", "c", "d", "d"]
        for weights in resample(anomalous, groups, seed=0, replicates=100):
            assert weights[anomalous].sum() > 0
            assert weights[~anomalous].sum() > 0
            assert weights[0] == weights[1]
            assert weights[3] == weights[4]
            assert weights[5] == weights[6]

    def test_copies_in_one_group_do_not_narrow_the_interval(self):
        scores, anomalous = scored_images(5, n=60)
        alone = image_metrics(scores, anomalous, bootstrap=500)["image_auroc"]
        groups = [str(i) for i in range(60)] * 9
        copied = image_metrics(np.tile(scores, 9), np.tile(anomalous, 9), groups, bootstrap=500)
        as_if_independent = image_metrics(np.tile(scores, 9), np.tile(anomalous, 9), bootstrap=500)
        width = alone["high"] - alone["low"]
        assert copied["image_auroc"]["high"] - copied["image_auroc"]["low"] == pytest.approx(width, rel=0.2)
        naive = as_if_independent["image_auroc"]
        assert naive["high"] - naive["low"] < width / 2

    def test_no_interval_from_a_single_anomalous_group(self):
        estimate = image_metrics([1, 2, 3, 4], [0, 0, 1, 1], ["a", "b", "c", "c"])["image_auroc"]
        assert estimate == {"value": 1.0, "low": None, "high": None}


class TestRate:
    def test_rule_of_three(self):
        # No event in 100: the upper bound solves (1 - p)^100 = 0.025.
        assert rate(0, 100) == {"value": 0.0, "low": 0.0, "high": pytest.approx(1 - 0.025**0.01)}

    def test_nothing_observed(self):
        assert rate(0, 0) == {"value": None, "low": None, "high": None}


def test_poisson_weights_average_one():
    weights = np.stack([poisson_weights(f"g{i}", 0, 200) for i in range(200)])
    assert weights.mean() == pytest.approx(1, abs=0.02)
    assert weights.var() == pytest.approx(1, abs=0.05)
