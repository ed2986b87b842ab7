"""What is foretold of an object by its header: what the scan's own rules say."""

from __future__ import annotations

from typing import Any

import pytest

from ad_jobs.errors import ErrorCode
from ad_jobs.images.domain import Domain, Taker
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.planning.outlook import outlook

POLICY = PixelPolicy(channels=1, height_px=32, width_px=32)
LIMITS = Limits(max_bytes=1000, max_pixels=10_000, max_frames=50, max_input_pixels=40 * 32 * 32)
MR = {
    **dict.fromkeys(("body_part", "header_error", "spacing_mm")),
    **{"kind": "dicom", "modality": "MR", "bytes": 500, "sop_class": "1.2.840.10008.5.1.4.1.1.4", "rows": 40},
    **{"columns": 50, "frames": 1, "bits": 12, "photometric": "MONOCHROME2"},
    "transfer_syntax": "1.2.840.10008.1.2.1",
}
BRAINS = Domain(modality=("MR",), kind=("dicom",), side_px=(10, 100), spacing_mm=(0.5, 2))


def seen(*domains: Domain, **header: Any) -> Any:
    return outlook(MR | header, [POLICY], LIMITS, [Taker(0, domain) for domain in domains or (Domain(),)])


def test_an_image_that_the_model_takes() -> None:
    found = seen(BRAINS)
    assert (found.code, found.refused, found.outcome, found.is_scored) == (None, (None,), None, True)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"kind": None, "header_error": "not_found"}, "not_found"),
        ({"kind": None, "header_error": "nested_container"}, "nested_container"),
        ({"kind": "other", "bytes": 0}, "empty"),
        ({"bytes": 1001}, "too_many_bytes"),
        ({"kind": "other"}, "unknown_format"),
        ({"kind": "jp2"}, "unknown_format"),
        ({"header_error": "corrupt"}, "corrupt"),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.88.33"}, "not_an_image"),
        ({"sop_class": None, "modality": "SR"}, "not_an_image"),
        ({"transfer_syntax": "1.2.840.10008.1.2.4.100"}, "unsupported_syntax"),
        ({"rows": 101, "columns": 100}, "too_many_pixels"),
        ({"frames": 51}, "too_many_frames"),
        # At the input's size.
        ({"frames": 41}, "too_many_frames"),
    ],
)
def test_what_no_model_scores(header: dict[str, Any], code: str) -> None:
    found = seen(**header)
    assert (found.code, found.outcome, found.is_scored) == (ErrorCode(code), ErrorCode(code), False)
    assert found.detail


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"modality": "CT"}, "modality CT, and the model takes MR"),
        ({"kind": "png"}, "kind picture, and the model takes dicom"),
        ({"rows": 9}, "side_px 9 x 50, and the model takes 10 to 100"),
        ({"spacing_mm": 2.5}, "spacing_mm 2.5, and the model takes 0.5 to 2"),
        # At the input's size it would be too much; but nothing of it is decoded.
        ({"modality": "CT", "frames": 41}, "modality CT, and the model takes MR"),
    ],
)
def test_what_a_model_refuses(header: dict[str, Any], why: str) -> None:
    found = seen(BRAINS, **header)
    assert (found.code, found.refused, found.is_scored) == (None, (why,), False)
    assert found.outcome == ErrorCode.OUT_OF_DOMAIN


def test_of_two_models_one_refuses() -> None:
    found = seen(BRAINS, Domain(), modality="CT")
    assert (found.outcome, found.is_scored) == (ErrorCode.OUT_OF_DOMAIN, True)


def test_the_input_of_a_model_that_refuses_it_is_not_reckoned() -> None:
    large = POLICY.model_copy(update={"height_px": 64})
    takers = [Taker(0, Domain()), Taker(1, Domain(modality=("CT",)))]
    # Twenty frames are half of what is allowed at the first's input, and all of it at the second's.
    assert outlook(MR | {"frames": 20}, [POLICY, large], LIMITS, takers).outcome == ErrorCode.OUT_OF_DOMAIN
    assert outlook(MR | {"frames": 20, "modality": "CT"}, [POLICY, large], LIMITS, takers).code == "too_many_frames"
    # Too much for the one that takes it: the other still refuses it.
    found = outlook(MR | {"frames": 41}, [POLICY, large], LIMITS, takers)
    assert (found.outcome, found.refused) == ("too_many_frames", (None, "modality MR, and the model takes CT"))


def test_what_a_header_does_not_tell_excludes_nothing() -> None:
    untold = dict.fromkeys(("modality", "rows", "columns", "frames", "transfer_syntax", "spacing_mm", "bytes"))
    assert seen(BRAINS, **untold).outcome is None
