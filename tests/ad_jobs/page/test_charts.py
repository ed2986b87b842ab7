"""Histograms of scores: exact about the threshold, and drawn whatever the scores are."""

import numpy as np
import pytest

from ad_jobs.page import charts


def binned(scores: np.ndarray, threshold: float) -> charts.Bars:
    """In parts, as a table is read."""
    return charts.bin_scores(np.array_split(scores, 3), np.quantile(scores, [0, 0.001, 0.999, 1]).tolist(), threshold)


def test_bars_left_and_right_of_the_threshold_count_exactly():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 5000), [2.0, 2.0, 500.0, -500.0]])
    bars = binned(scores, 2.0)
    assert 2.0 in bars.edges
    assert bars.counts.sum() == scores.size
    assert bars.counts[bars.edges[:-1] >= 2.0].sum() == (scores > 2.0).sum()
    assert bars.beyond == 2


@pytest.mark.parametrize("scores", [[0.3], [0.3, 0.3], [0.0], [1e9, 1e9 + 1], [-5.0, 4.0]])
def test_any_scores_make_a_histogram(scores):
    bars = binned(np.array(scores), 0.5)
    assert bars.counts.sum() == len(scores)
    assert "<svg" in charts.score_histogram(bars, 0.5)


def test_few_flagged_among_many_switch_to_a_log_axis():
    many = binned(np.concatenate([np.full(100_000, 0.1), [0.9]]), 0.5)
    few = binned(np.array([0.1, 0.9]), 0.5)
    assert "log scale" in charts.score_histogram(many, 0.5)
    assert "log scale" not in charts.score_histogram(few, 0.5)
