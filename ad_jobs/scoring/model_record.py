"""The form of detector.json, as far as anything here reads it: what was edited by hand is told before it does harm.

What nobody reads may be anything, and what is not here was not written by an earlier version.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, NotRequired

from pydantic import (
    AfterValidator,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    with_config,
)

# Of these pydantic takes no others before Python 3.12.
from typing_extensions import TypedDict

from ad_jobs.errors import UsageError, flaw
from ad_jobs.images.policy import Limits, PixelPolicy
from cluster import storage
from models.record import DETECTOR


@with_config(extra="forbid")
class _Input(TypedDict):
    """models.detector.InputSpec, without torch."""

    channels: PositiveInt
    height_px: PositiveInt
    width_px: PositiveInt
    needs_anomalous: NotRequired[bool]


class _Source(TypedDict):
    """Of a pretrained network, or of the members of a fused model."""

    name: NotRequired[str]
    weights: NotRequired[str]
    sha256: NotRequired[str | None]
    licence: NotRequired[str | None]
    members: NotRequired[list[_Member]]


class _Member(TypedDict):
    kind: str
    model_id: str
    weight: FiniteFloat
    source: _Told | None


def _is_told(source: _Source) -> _Source:
    if "members" not in source and not {"name", "weights"} <= source.keys():
        raise ValueError("a network has its name and weights, and a fused model its members")
    return source


_Told = Annotated[_Source, AfterValidator(_is_told)]


class _Data(TypedDict):
    """What a fit was fitted on."""

    normal: str
    n_fitted: NonNegativeInt
    n_held_out: NonNegativeInt
    n_tiles_fitted: NotRequired[NonNegativeInt]
    held_out_sha256: NotRequired[str]


class _Candidate(TypedDict):
    detector: str
    folder: str
    why: str
    model_id: NotRequired[str]
    seconds: NotRequired[FiniteFloat]
    score_cpu_ms: NotRequired[FiniteFloat]
    found: NotRequired[FiniteFloat]
    auroc: NotRequired[dict[str, FiniteFloat]]


class _Auto(TypedDict):
    """How `fit --detector auto` chose."""

    digest: str
    budget_s: FiniteFloat
    seconds: FiniteFloat
    judged_on: NonNegativeInt
    kinds: list[str]
    kept: str
    rule: str
    candidates: list[_Candidate]


def _is_judged(auto: _Auto) -> _Auto:
    for one in auto["candidates"]:
        if "found" in one and not set(auto["kinds"]) <= one.get("auroc", {}).keys():
            raise ValueError(f"{one['detector']} was judged by every kind of defect")
    return auto


class _FusedMember(TypedDict):
    uri: str
    kind: str
    model_id: str
    found: FiniteFloat
    weight: FiniteFloat
    why: str | None


class _Fused(TypedDict):
    """Who joined a fused model."""

    normal: str
    normals: NonNegativeInt
    kinds: list[str]
    found: FiniteFloat
    members: list[_FusedMember]


class _Record(TypedDict):
    kind: str
    config: dict[str, Any]
    spec: _Input
    policy: PixelPolicy
    source: _Told | None
    model_id: str
    weights_sha256: str
    limits: NotRequired[Limits]
    versions: NotRequired[dict[str, str]]
    seconds: NotRequired[NonNegativeFloat]
    # None, where a fit did not measure it.
    score_cpu_ms: NotRequired[Annotated[FiniteFloat, NonNegativeFloat] | None]
    fitted_at: NotRequired[str]
    data: NotRequired[_Data]
    auto: NotRequired[Annotated[_Auto, AfterValidator(_is_judged)]]
    fused: NotRequired[_Fused]


def _is_dated(record: _Record) -> _Record:
    if "data" in record and "fitted_at" not in record:
        raise ValueError("a record with data has fitted_at")
    return record


_FORM = TypeAdapter(Annotated[_Record, AfterValidator(_is_dated)])


def demand_readable(record: dict[str, Any], uri: str) -> None:
    """Raise UsageError where the record of the model at `uri` has not the form in which it is read."""
    try:
        # As JSON, whose numbers and texts are told apart; and a list may stand for a pair.
        _FORM.validate_json(json.dumps(record), strict=True)
    except ValidationError as error:
        raise UsageError(
            f"{DETECTOR} stays as `fit` or `fuse` wrote it.",
            f"{storage.join(uri, DETECTOR)}: {flaw(error)}",
            "Put back what stood there, or fit again.",
        ) from error
