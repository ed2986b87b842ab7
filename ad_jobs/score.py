"""`retroscan score`: a few images in this process, without a cluster; the numbers of a scan."""

from __future__ import annotations

from typing import Any

import numpy as np

from ad_jobs.archive.fetching import CONSTANT_FRAME, Source, fetch_all, prepare, status_of
from ad_jobs.errors import ErrorCode, UsageError
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.scoring.model_store import open_model
from ad_jobs.scoring.scorer import Scorer
from cluster import storage


def score(model_uri: str, images: list[str]) -> list[dict[str, Any]]:
    """One JSON-able dict for each frame of each image, in order: as in the score table.

    An image that cannot be scored has one dict with its `error_code`; `score` and `flagged` are None there.

    Raises:
        UsageError: no image given, or a model that cannot be opened.
    """
    if not images:
        raise UsageError("score takes one or more images.", "none", "Name files or s3:// objects after the model.")
    model = open_model(model_uri)
    scorer = Scorer(model.detector)
    sources = [Source(number, storage.absolute(image)) for number, image in enumerate(images)]
    rows: list[dict[str, Any]] = []
    with GuardedDecoder() as decoder:
        for fetched in fetch_all(sources, model.limits.max_bytes):
            prepared = prepare(fetched, model.policy, model.limits, decoder)
            common = {
                "image": images[prepared.source.object_id],
                "model_id": model.model_id,
                "threshold": model.calibration.threshold,
            }
            if prepared.error is not None:
                rows.append(common | _failed(0, prepared.error.code, prepared.error.detail))
                continue
            found = scorer.score(frame.pixels for frame in prepared.frames)
            for frame, answer in zip(prepared.frames, found, strict=True):
                if not answer.finite:
                    rows.append(common | _failed(frame.index, ErrorCode.NON_FINITE_SCORE, "the detector's answer"))
                    continue
                rows.append(
                    common
                    | {
                        "frame": frame.index,
                        "status": status_of(None),
                        "error_code": None,
                        "error_detail": CONSTANT_FRAME if frame.constant else None,
                        "score": answer.score,
                        "flagged": bool(np.float32(answer.score) > np.float32(model.calibration.threshold)),
                    }
                )
    return rows


def _failed(frame: int, code: ErrorCode, detail: str) -> dict[str, Any]:
    return {
        "frame": frame,
        "status": status_of(code),
        "error_code": str(code),
        "error_detail": detail,
        "score": None,
        "flagged": None,
    }
