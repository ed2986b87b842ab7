"""Histograms that know an image's background, and quantiles of a stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.parts import histogram_error
from models.parts.histogram import LogHistogram


def noisy(seed: int = 0, level: float = 0.2) -> torch.Tensor:
    """An error map [1, 64, 64]: noise around a level, none below zero."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.abs(rng.normal(level, 0.03, (1, 64, 64)))).float()


def test_the_background_is_the_histograms_mode():
    assert float(histogram_error.mode(noisy(), 1.0, 10.0)) == pytest.approx(0.2, abs=0.012)


def test_each_map_has_its_own_mode():
    both = torch.cat([noisy(level=0.15), noisy(level=0.3)])
    assert histogram_error.mode(both, 1.0, 10.0).tolist() == pytest.approx([0.15, 0.3], abs=0.012)


def test_errors_beyond_the_histograms_end_do_not_move_the_mode():
    errors = noisy()
    errors[:, :, 40:] = 5.0
    assert float(histogram_error.mode(errors, 1.0, 10.0)) == pytest.approx(0.2, abs=0.012)


def test_subtraction_is_monotone_and_leaves_nothing_of_a_flat_map():
    low, high = noisy(), noisy() + 0.1 * torch.rand(1, 64, 64)
    mode = histogram_error.mode(low, 1.0, 10.0)
    left = histogram_error.subtract(low, mode)
    assert bool((histogram_error.subtract(high, mode) >= left).all())
    assert float(left.min()) == 0
    torch.testing.assert_close(left[low > 0.25], low[low > 0.25] - mode)
    flat = torch.zeros(1, 64, 64)
    assert float(histogram_error.subtract(flat, histogram_error.mode(flat, 1.0, 10.0)).max()) == 0


def test_an_image_offset_goes_with_the_mode():
    """What differs between images as a whole is taken off; a defect of the same height stays the same."""
    left = []
    for level in (0.15, 0.3):
        errors = noisy(level=level)
        errors[:, :8, :8] += 0.4
        left.append(histogram_error.subtract(errors, histogram_error.mode(errors, 1.0, 10.0))[:, :8, :8].mean())
    assert float(left[0]) == pytest.approx(float(left[1]), abs=0.02)


def test_a_defect_over_most_of_the_image_does_not_delete_itself():
    errors = noisy()
    # Five eighths.
    errors[:, :, :40] += 0.5
    assert float(histogram_error.mode(errors, 1.0, 10.0)) > 0.6
    capped = histogram_error.mode(errors, 1.0, 0.25)
    assert float(capped) == pytest.approx(0.25)
    assert float(histogram_error.subtract(errors, capped)[:, :, :40].mean()) > 0.4


def test_the_mode_moves_little_when_the_errors_do():
    """Continuous: a change in the last digit moves it by about as much, also across bins."""
    errors = noisy()
    before, after = (histogram_error.mode(scaled, 1.0, 10.0) for scaled in (errors, errors * (1 + 1e-6)))
    assert float((before - after).abs()) < 1e-5


def test_quantiles_of_a_histogram_are_those_of_its_values():
    values = torch.from_numpy(np.random.default_rng(0).lognormal(-4, 1, 5000))
    whole, parts = LogHistogram(1e-5, 2.0), [LogHistogram(1e-5, 2.0) for _ in range(2)]
    whole.add(values)
    for part, share in zip(parts, values.split(3000), strict=True):
        part.add(share)
    parts[0].all_reduce(lambda counts: counts + parts[1].counts)
    for share in (0.5, 0.95, 0.999):
        assert whole.quantile(share) == pytest.approx(float(values.quantile(share)), rel=0.01)
        assert parts[0].quantile(share) == whole.quantile(share)
