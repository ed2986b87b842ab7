"""What must hold of the metrics whatever the scores are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from ad_jobs.evaluation import image_metrics, pixel_metrics, ranking
from ad_jobs.evaluation.image_metrics import IMAGE_METRICS
from ad_jobs.evaluation.pixel_metrics import PixelHistogram

ROUND_OFF = 1e-9


@st.composite
def labelled_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels with both classes."""
    n = draw(st.integers(2, 40))
    scores = draw(arrays(np.float64, n, elements=st.integers(-6, 6).map(lambda v: v / 4)))
    anomalous = draw(arrays(np.bool_, n).filter(lambda a: a.any() and not a.all()))
    return scores, anomalous


@st.composite
def heatmap_and_mask(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(1, 9), st.integers(2, 9)))
    levels = draw(arrays(np.int64, shape, elements=st.integers(0, 65535)))
    return levels / 65535, draw(arrays(np.bool_, shape).filter(lambda a: a.any() and not a.all()))


@given(labelled_scores())
def test_counted_scores_have_the_metrics_of_scikit_learn(data):
    counted = ranking.histograms(*data)
    for name, metric in IMAGE_METRICS.items():
        assert abs(metric.of_histograms(counted) - metric.of_scores(*data)) < ROUND_OFF, name


@given(labelled_scores())
def test_only_the_order_of_scores_counts(data):
    scores, anomalous = data
    for name, metric in IMAGE_METRICS.items():
        assert metric.of_scores(np.exp(scores) * 3 - 7, anomalous) == metric.of_scores(scores, anomalous), name


@given(labelled_scores())
def test_flipping_scores_and_classes_keeps_the_auroc(data):
    scores, anomalous = data
    flipped = image_metrics.image_auroc(-scores, ~anomalous)
    assert abs(image_metrics.image_auroc(scores, anomalous) - flipped) < ROUND_OFF


@given(labelled_scores())
def test_missing_nothing_costs_accuracy(data):
    scores, anomalous = data
    zero_fn = image_metrics.accuracy_zero_fn(scores, anomalous)
    threshold = scores[anomalous].min()
    assert abs(zero_fn - np.mean((scores >= threshold) == anomalous)) < ROUND_OFF
    assert image_metrics.accuracy_max(scores, anomalous) >= zero_fn - ROUND_OFF


@given(labelled_scores())
def test_accuracy_max_is_the_best_of_all_observed_thresholds(data):
    scores, anomalous = data
    best = max(np.mean((scores >= t) == anomalous) for t in scores)
    assert abs(image_metrics.accuracy_max(scores, anomalous) - best) < ROUND_OFF


@given(labelled_scores(), st.integers(0, 2**32))
def test_intervals_hold_their_value(data, seed):
    for estimate in image_metrics.image_metrics(*data, seed=seed, bootstrap=20).values():
        assert 0 <= estimate["value"] <= 1
        if estimate["low"] is not None:
            assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1


@given(heatmap_and_mask())
def test_pixels_are_counted_exactly(data):
    heatmap, mask = data
    histogram = PixelHistogram()
    histogram.update(heatmap, mask)
    assert abs(histogram.pixel_auroc() - roc_auc_score(mask.ravel(), heatmap.ravel())) < ROUND_OFF
    assert histogram.pixels().normal.sum() == (~mask).sum()
    assert histogram.pixels().abnormal.sum() == mask.sum()


@given(heatmap_and_mask())
def test_aupro_to_the_end_of_one_region_is_its_auroc(data):
    heatmap, mask = data
    region = np.zeros_like(mask)
    region[np.unravel_index(np.flatnonzero(mask)[0], mask.shape)] = True
    histogram = PixelHistogram()
    histogram.update(heatmap, region)
    assert abs(histogram.aupro(max_fpr=1.0) - roc_auc_score(region.ravel(), heatmap.ravel())) < ROUND_OFF


@given(heatmap_and_mask())
def test_a_binary_mask_is_a_soft_mask(data):
    heatmap, mask = data
    soft = PixelHistogram(1000)
    soft.update_soft(heatmap, mask.astype(float))
    reached = np.floor(pixel_metrics.threshold_of(heatmap, 1000)).ravel()
    assert abs(soft.pixel_auroc() - roc_auc_score(mask.ravel(), reached)) < ROUND_OFF


@given(labelled_scores(), st.floats(0.05, 1.0))
def test_partial_auroc_never_exceeds_the_curve_at_its_limit(data, limit):
    pair = ranking.histograms(*data)
    fpr, tpr = ranking.roc(pair)
    inside = ranking.partial_auroc(pair, limit)
    assert 0 <= inside <= np.interp(limit, fpr, np.maximum.accumulate(tpr)) + ROUND_OFF or limit in fpr
    assert abs(ranking.partial_auroc(pair, 1.0) - ranking.auroc(pair)) < ROUND_OFF
