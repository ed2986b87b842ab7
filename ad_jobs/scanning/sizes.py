"""How large the frames of a scan are taken to be before any is decoded, and what they cost: what it is divided by.

What is resized to one size is of that size.
What is cut into tiles at its own resolution is as large as the manifest's headers say, or else as the fit saw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import pyarrow.compute as pc

from ad_jobs.archive.manifest import read_parts
from ad_jobs.archive.manifest_record import ManifestInfo
from ad_jobs.images.geometry import Geometry
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scoring.model_store import CalibratedModel

# Rows and columns.
Size = tuple[int, int]


def frame_px(
    policies: Sequence[PixelPolicy], models: Sequence[CalibratedModel], limits: Limits, manifest: ManifestInfo
) -> tuple[int, ...]:
    """Of each policy: the pixels of a frame at the input's size, or of the largest frame as it is cut."""
    largest = _largest(manifest) if any(map(_is_own_size, policies)) else None
    found = []
    for policy in policies:
        if not _is_own_size(policy):
            found.append(prod(Geometry.of(policy, 1, 1).size_px))
        elif largest is not None:
            found.append(min(limits.max_pixels, _cut_px(policy, largest)))
        else:
            # Of models that do not say what they were fitted on, the worst.
            seen = [_seen_px(model) for model in models if model.policy == policy]
            found.append(max(filter(None, seen), default=limits.max_pixels))
    return tuple(found)


def score_ms(models: Sequence[CalibratedModel], policies: Sequence[PixelPolicy], px: Sequence[int]) -> float | None:
    """What an object costs all models of one CPU's time, as their fits measured it; None if one did not.

    `px` is of the policies, as `frame_px` has it: of images that are cut a larger one costs more than those of the fit.
    """
    costs = []
    for model in models:
        if model.score_cpu_ms is None:
            return None
        seen = _seen_px(model) if _is_own_size(model.policy) else None
        costs.append(model.score_cpu_ms * (px[policies.index(model.policy)] / seen if seen else 1.0))
    return sum(costs)


def _is_own_size(policy: PixelPolicy) -> bool:
    return policy.tiles is not None and policy.tiles.size_px is None


def _cut_px(policy: PixelPolicy, size: Size) -> int:
    return prod(Geometry.of(policy, *size).size_px)


def _seen_px(model: CalibratedModel) -> int | None:
    """Of the largest rows and columns that the fit saw; None where it does not say."""
    seen = model.domain.seen
    return _cut_px(model.policy, (seen.rows[1], seen.columns[1])) if seen and seen.rows and seen.columns else None


def _largest(manifest: ManifestInfo) -> Size | None:
    """The largest rows and columns that headers tell of; None of a manifest without headers."""
    if not {"rows", "columns"} <= set(manifest.names):
        return None
    rows = columns = 0
    for part in read_parts(manifest, ("rows", "columns")):
        rows = max(rows, pc.max(part["rows"]).as_py() or 0)
        columns = max(columns, pc.max(part["columns"]).as_py() or 0)
    return (rows, columns) if rows and columns else None
