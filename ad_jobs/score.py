"""`retroscan score`: a few images in this process, without a cluster; the numbers of a scan."""

from __future__ import annotations

from typing import Any

from ad_jobs.archive.fetching import Source, detail_of_scored, fetch_all, prepare, status_of
from ad_jobs.archive.objects import as_listed
from ad_jobs.errors import ErrorCode
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.schema import is_flagged, storable
from ad_jobs.scoring.model_store import open_model
from ad_jobs.scoring.scorer import Scorer
from ad_jobs.specs import ScoreSpec, takes
from ad_jobs.values import place


@takes(ScoreSpec)
def score(spec: ScoreSpec) -> list[dict[str, Any]]:
    """One JSON-able dict for each frame of each image, in order: as in the score table.

    An image that cannot be scored has one dict with its `error_code`; `score` and `flagged` are None there.

    Raises:
        UsageError: a model that cannot be opened, or a container of several images.
    """
    sources = [Source(number, as_listed(uri)) for number, uri in enumerate(spec.places)]
    model = open_model(spec.model)
    threshold = model.calibration.threshold
    scorer = Scorer(model.detector, tiles=model.policy.tiles)
    domain = model.domain.accepts.widened(spec.accept)
    rows: list[dict[str, Any]] = []
    with GuardedDecoder() as decoder:
        for fetched in fetch_all(sources, model.limits.max_bytes):
            prepared = prepare(fetched, model.policy, model.limits, decoder, [domain])
            common = {
                "image": _named(spec.images[prepared.source.object_id]),
                "model_id": model.model_id,
                "threshold": threshold,
            }
            if reason := next(iter(prepared.refused), None):
                rows.append(common | _unscored(0, ErrorCode.OUT_OF_DOMAIN, reason))
                continue
            if prepared.error is not None:
                rows.append(common | _unscored(0, prepared.error.code, prepared.error.detail))
                continue
            found = scorer.score(frame.pixels for frame in prepared.frames)
            for frame, answer in zip(prepared.frames, found, strict=True):
                if not answer.finite:
                    rows.append(common | _unscored(frame.index, ErrorCode.NON_FINITE_SCORE, "the detector's answer"))
                    continue
                scored = {
                    "frame": frame.index,
                    "status": status_of(None),
                    "error_code": None,
                    "error_detail": detail_of_scored(frame.constant, prepared.remarks),
                    "score": answer.score,
                    "flagged": bool(is_flagged(answer.score, threshold)),
                }
                rows.append(common | scored)
    return rows


def _named(image: str) -> str:
    """An image as it was named; by its URI where that is no Unicode text, which JSON cannot hold."""
    return image if storable(image) == image else place(image)


def _unscored(frame: int, code: ErrorCode, detail: str) -> dict[str, Any]:
    return {
        "frame": frame,
        "status": status_of(code),
        "error_code": str(code),
        "error_detail": detail,
        "score": None,
        "flagged": None,
    }
