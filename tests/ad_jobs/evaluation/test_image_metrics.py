"""Metrics of image scores against hand-computed values, and counted ones against scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ad_jobs.evaluation import image_metrics, ranking
from ad_jobs.evaluation.image_metrics import IMAGE_METRICS

# Both sides add the same terms in another order: a few units in the last place of a double.
ROUND_OFF = 1e-12

# One of nine pairs (4 before 3) is in the wrong order.
SCORES = (1, 2, 3, 4, 5, 6)
ANOMALOUS = (0, 0, 1, 0, 1, 1)


def test_auroc_by_hand():
    assert image_metrics.image_auroc(SCORES, ANOMALOUS) == pytest.approx(8 / 9)


def test_average_precision_by_hand():
    # Recall rises at 6, 5 and 3, where precision is 1, 1 and 3/4.
    assert image_metrics.image_ap(SCORES, ANOMALOUS) == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_f1_max_by_hand():
    # At 3: three hits, one false alarm, none missed.
    assert image_metrics.f1_max(SCORES, ANOMALOUS) == pytest.approx(6 / 7)


def test_accuracy_max_by_hand():
    assert image_metrics.accuracy_max(SCORES, ANOMALOUS) == pytest.approx(5 / 6)


def test_accuracy_max_does_not_flag_nothing():
    # Only observed scores are thresholds, so the best is to flag everything from 2 up.
    assert image_metrics.accuracy_max([1, 2, 2, 2], [1, 0, 0, 0]) == pytest.approx(1 / 4)


def test_accuracy_zero_fn_by_hand():
    # Threshold 3 misses nothing and flags the normal 4.
    assert image_metrics.accuracy_zero_fn(SCORES, ANOMALOUS) == pytest.approx(5 / 6)


def test_a_normal_tied_with_the_lowest_anomalous_is_flagged():
    assert image_metrics.accuracy_zero_fn([1, 2, 2], [0, 0, 1]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("anomalous", [[0, 0, 0], [1, 1, 1]])
def test_one_class_has_no_metric(anomalous):
    for estimate in image_metrics.image_metrics([1.0, 2.0, 3.0], anomalous).values():
        assert estimate == {"value": None, "low": None, "high": None}


def test_refuses_scores_that_are_no_numbers():
    with pytest.raises(ValueError, match="finite"):
        image_metrics.image_auroc([1.0, np.nan], [0, 1])


def test_refuses_labels_of_another_length():
    with pytest.raises(ValueError, match="one length"):
        image_metrics.image_auroc([1.0, 2.0], [0, 1, 1])


def scored_images(seed: int, levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    anomalous = rng.random(200) < 0.3
    scores = rng.normal(size=200) + anomalous
    return (np.round(scores * levels) / levels if levels else scores), anomalous


@pytest.mark.parametrize("levels", [None, 3], ids=["distinct", "many ties"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_counted_replicate_has_the_metrics_of_scikit_learn(seed, levels):
    scores, anomalous = scored_images(seed, levels)
    times = np.random.default_rng(seed).integers(0, 4, scores.size)
    counted = ranking.histograms(scores, anomalous, times)
    repeated = np.repeat(scores, times), np.repeat(anomalous, times)
    for name, metric in IMAGE_METRICS.items():
        assert metric.of_histograms(counted) == pytest.approx(metric.of_scores(*repeated), abs=ROUND_OFF), name
    weighted = {"sample_weight": times}
    assert ranking.auroc(counted) == pytest.approx(roc_auc_score(anomalous, scores, **weighted), abs=ROUND_OFF)
    expected = average_precision_score(anomalous, scores, **weighted)
    assert ranking.average_precision(counted) == pytest.approx(expected, abs=ROUND_OFF)
