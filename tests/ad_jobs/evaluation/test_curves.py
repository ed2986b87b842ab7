"""The curves of a report: what they stand for, and what thinning keeps of them."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ad_jobs.evaluation.curves import score_curves, thin


def test_curves_of_few_scores_have_the_areas_of_the_metrics():
    rng = np.random.default_rng(0)
    anomalous = rng.random(120) < 0.4
    scores = np.round(rng.normal(size=120) + anomalous, 1)
    curves = score_curves(scores, anomalous)
    area = np.trapezoid(curves["roc"]["tpr"], curves["roc"]["fpr"])
    assert area == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-5)
    recall, precision = curves["pr"]["recall"], curves["pr"]["precision"]
    steps = np.diff(recall, prepend=0.0) * precision
    assert steps.sum() == pytest.approx(average_precision_score(anomalous, scores), abs=1e-5)
    assert (curves["roc"]["fpr"][0], curves["roc"]["tpr"][-1], recall[-1]) == (0, 1, 1)
    assert sum(curves["scores"]["normal"]) == (~anomalous).sum()
    assert sum(curves["scores"]["anomalous"]) == anomalous.sum()


def test_one_class_has_scores_but_no_curves_and_no_scores_have_nothing():
    assert list(score_curves(np.array([1.0, 2.0]), np.array([False, False]))) == ["scores"]
    assert score_curves(np.array([]), np.array([], dtype=bool)) == {}


def test_thinned_curve_keeps_ends_and_area():
    x = np.linspace(0, 1, 5000)
    thin_x, thin_y = thin(x, np.sqrt(x))
    assert len(thin_x) <= 200
    assert (thin_x[0], thin_y[0], thin_x[-1], thin_y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(thin_y, thin_x) == pytest.approx(2 / 3, abs=1e-3)
