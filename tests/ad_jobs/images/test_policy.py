"""Pixel policies and limits: what is refused, in words that name the rule."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from ad_jobs.images.policy import MAX_SIDE_PX, Limits, PixelPolicy

SIZE = {"channels": 1, "height_px": 8, "width_px": 12}


def message(model: type[PixelPolicy] | type[Limits], **values: Any) -> tuple[tuple[Any, ...], str]:
    """Where the first error is, and what it says."""
    with pytest.raises(ValidationError) as caught:
        model(**values)
    (first, *_) = caught.value.errors()
    return first["loc"], first["msg"]


@pytest.mark.parametrize("side", ["height_px", "width_px"])
@pytest.mark.parametrize("value", [0, -1, MAX_SIDE_PX + 1])
def test_a_size_out_of_range_says_the_range(side: str, value: int) -> None:
    assert message(PixelPolicy, **{**SIZE, side: value}) == ((side,), f"must be from 1 to {MAX_SIDE_PX} pixels")
    assert getattr(PixelPolicy.model_validate({**SIZE, side: MAX_SIDE_PX}), side) == MAX_SIDE_PX


@pytest.mark.parametrize(
    "window",
    [(-math.inf, 5.0), (0.0, math.inf), (math.nan, 5.0), (0.0, math.nan), (5.0, 5.0), (7, 3), "wide", [1], None],
)
def test_a_window_is_a_word_or_two_finite_numbers_in_order(window: Any) -> None:
    expected = "must be dicom, percentile, or two finite numbers, low < high"
    assert message(PixelPolicy, **SIZE, window=window) == (("window",), expected)


@pytest.mark.parametrize("window", ["dicom", "percentile", (-100.0, 300.0)])
def test_a_policy_survives_json_and_pickling(window: Any) -> None:
    policy = PixelPolicy(**SIZE, window=window)
    assert PixelPolicy.model_validate_json(policy.model_dump_json()) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_a_record_without_a_way_to_decode_means_whole_frames_and_stays_as_it_is() -> None:
    before = {**SIZE, "window": "dicom", "resize": "stretch", "interpolation": "area"}
    policy = PixelPolicy.model_validate(before)
    assert policy.decode == "full"
    # Model ids follow from it.
    assert policy.model_dump(mode="json") == PixelPolicy(**SIZE, decode="full").model_dump(mode="json") == before


def test_a_record_of_reduced_frames_says_so() -> None:
    policy = PixelPolicy(**SIZE, decode="reduced")
    assert policy.model_dump(mode="json")["decode"] == "reduced"
    assert PixelPolicy.model_validate_json(policy.model_dump_json()) == policy


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "max_frames"])
def test_limits_are_counts(name: str) -> None:
    assert message(Limits, **{name: 0}) == ((name,), "must be 1 or more")


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
def test_a_time_limit_is_finite_and_above_zero(seconds: float) -> None:
    assert message(Limits, timeout_s=seconds) == (("timeout_s",), "must be a finite number above 0")
