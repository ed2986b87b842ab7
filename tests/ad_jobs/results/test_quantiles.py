"""Quantiles by counting bits are those of numpy, to the last digit where they are one of the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from ad_jobs.results.quantiles import quantiles

SHARES = [0, 0.001, 0.25, 0.5, 0.99, 0.999, 1]


@pytest.mark.parametrize(
    "numbers",
    [
        np.random.default_rng(0).normal(0, 3, 10_007),
        np.random.default_rng(1).normal(1000, 1e-3, 501),
        [0.25],
        [-1.0, -0.0, 0.0, 1.0],
        np.repeat([2.5, -7.0], 300),
        [-3.4e38, 3.4e38, 1e-45, -1e-45],
    ],
)
def test_they_are_numpys(numbers):
    numbers = np.asarray(numbers, np.float32)
    found = quantiles(lambda: np.array_split(numbers, 7), SHARES)
    assert found is not None
    np.testing.assert_allclose(found, np.quantile(numbers.astype(np.float64), SHARES), rtol=1e-12, atol=0)
    assert (found[0], found[-1]) == (numbers.min(), numbers.max())


def test_no_numbers_have_none():
    assert quantiles(lambda: iter([np.zeros(0, np.float32)]), SHARES) is None
