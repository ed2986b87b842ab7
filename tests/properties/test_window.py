"""Windows for any numbers: in [0, 1], never decreasing, the standard's own examples; the way to floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ad_jobs.images import window
from ad_jobs.images.lut import Lut, lookup, map_values
from ad_jobs.images.model_input import to_input

FUNCTIONS = st.sampled_from([window.linear, window.linear_exact, window.sigmoid])
CENTERS = st.floats(-5000, 5000)
WIDTHS = st.floats(1, 10000)
VALUES = st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=40).map(lambda many: np.sort(np.array(many)))
Function = Callable[[npt.NDArray[np.float64], float, float], npt.NDArray[np.float64]]


@given(FUNCTIONS, VALUES, CENTERS, WIDTHS)
def test_windows_stay_within_bounds_and_never_decrease(
    function: Function, values: npt.NDArray[np.float64], center: float, width: float
) -> None:
    shown = function(values, center, width)
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert (np.diff(shown) >= 0).all()


@given(st.integers(1, 16))
def test_the_standards_identity_window(bits: int) -> None:
    """PS3.3 C.11.2.1.2.1, note 4: centre 2^(n-1) and width 2^n are the identity for n stored bits."""
    values = np.arange(2**bits, dtype=np.float64)
    assert np.allclose(window.linear(values, 2 ** (bits - 1), 2**bits), values / (2**bits - 1), atol=1e-12)


@given(CENTERS, WIDTHS)
def test_the_centre_of_a_window_is_half_grey(center: float, width: float) -> None:
    at_centre = np.array([center])
    assert window.linear_exact(at_centre, center, width)[0] == pytest.approx(0.5)
    assert window.sigmoid(at_centre, center, width)[0] == pytest.approx(0.5)
    if width > 1:
        assert window.linear(at_centre - 0.5, center, width)[0] == pytest.approx(0.5)


@given(VALUES, CENTERS, st.floats(2, 10000), CENTERS)
def test_a_mirrored_window_is_the_negative(
    values: npt.NDArray[np.float64], center: float, width: float, top: float
) -> None:
    """What makes a MONOCHROME1 frame and its twin alike: top - v under the mirrored window is 1 - shown."""
    shown = window.linear(values, center, width)
    assert np.allclose(1 - window.linear(top - values, top - center + 1, width), shown, atol=1e-9)


@given(VALUES)
def test_percentiles_lie_within_the_values_and_spread_them(values: npt.NDArray[np.float64]) -> None:
    low, high = window.percentile_range(values)
    assert values.min() <= low <= high <= values.max()
    shown = window.spread(values, low, high)
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert (high > low) == (values.min() < values.max())


@given(st.integers(-100, 100), st.lists(st.integers(0, 65535), min_size=1, max_size=20), VALUES)
def test_a_lookup_takes_its_ends_beyond_its_ends(
    first: int, entries: list[int], values: npt.NDArray[np.float64]
) -> None:
    shown = lookup(values, Lut(first, np.array(entries), 65535))
    assert (shown[values < first - 0.5] == entries[0]).all()
    assert (shown[values > first + len(entries) - 0.5] == entries[-1]).all()
    inside = np.arange(len(entries), dtype=np.float64) + first
    assert lookup(inside, Lut(first, np.array(entries), 65535)).tolist() == entries


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_stored_frames_become_floats_by_one_rule(batch: int, height: int, width: int, colour: bool) -> None:
    rng = np.random.default_rng(height)
    stored = rng.integers(0, 65536, (batch, 3 if colour else 1, height, width), dtype=np.uint16)
    made = to_input(stored, 3)
    assert made.dtype == np.float32
    assert made.shape == (batch, 3, height, width)
    assert np.array_equal(np.rint(made * 65535).astype(np.uint16), np.broadcast_to(stored, made.shape))
    assert np.array_equal(to_input(stored[0], 3), made[0])
    if colour:
        with pytest.raises(ValueError, match="1 or 1 channels"):
            to_input(stored, 1)


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32]),
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
    ),
    st.floats(-3, 3),
    st.floats(-1e4, 1e4),
)
def test_each_gives_what_the_function_gives_of_all(stored: npt.NDArray[Any], slope: float, intercept: float) -> None:
    def function(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        return window.spread(values * slope + intercept, -500.0, 800.0).astype(np.float32)

    found = map_values(stored, function)
    assert found.dtype == np.float32
    assert found.flags.writeable
    np.testing.assert_array_equal(found, function(stored.astype(np.float64)))
