"""By how much would scores be others, had a model of `decode: reduced` seen frames that were decoded whole?

It is told, and fails nothing: both are what the model says of an image, and a run is judged by how its model decodes.
"""

from __future__ import annotations

from collections import Counter
from typing import TypedDict

import numpy as np

from ad_jobs.archive.fetching import Decoder, FetchedObject, prepare
from ad_jobs.errors import ErrorCode
from ad_jobs.images.policy import Limits
from ad_jobs.schema import is_flagged
from ad_jobs.scoring.scorer import FrameScore, Scorer
from ad_jobs.verifying.record import Judge


class DecodedWhole(TypedDict):
    """What decoding the sample's frames whole does to one model's scores.

    `largest` and `median` are of the absolute differences between the `frames` scored both ways, in the model's scores;
    null where there are none, as for a model that decodes whole frames anyway (`decode` is `full`).
    `spread` is the standard deviation of what the calibration's normals scored; null where it is not recorded.
    `unflagged` frames would no longer be flagged, `flagged` ones would be.
    `by_code` counts frames that would have no score, by why.
    """

    model_id: str
    decode: str
    frames: int
    largest: float | None
    median: float | None
    spread: float | None
    unflagged: int
    flagged: int
    by_code: dict[str, int]


class WholeFrames:
    """Scores one model's frames again, decoded whole, and keeps what differs."""

    def __init__(self, judge: Judge, scorer: Scorer, limits: Limits) -> None:
        self._judge, self._scorer, self._limits = judge, scorer, limits
        self._whole = judge.model.policy.model_copy(update={"decode": "full"})
        self._changes: list[float] = []
        self._unflagged = self._flagged = 0
        self._by_code: Counter[str] = Counter()

    def add(self, fetched: FetchedObject, found: list[FrameScore], decoder: Decoder) -> None:
        """Take the object up, whose frames' scores, decoded as the model says, are `found`."""
        if self._judge.model.policy == self._whole or not found:
            return
        prepared = prepare(fetched, self._whole, self._limits, decoder)
        if prepared.error is not None:
            self._by_code[str(prepared.error.code)] += len(found)
            return
        again = self._scorer.score(frame.pixels for frame in prepared.frames)
        for reduced, whole in zip(found, again, strict=True):
            if reduced.finite and whole.finite:
                self._compare(reduced.score, whole.score)
            elif reduced.finite:
                self._by_code[str(ErrorCode.NON_FINITE_SCORE)] += 1

    def _compare(self, reduced: float, whole: float) -> None:
        self._changes.append(abs(whole - reduced))
        threshold = self._judge.calibration.threshold
        before, after = (bool(is_flagged(score, threshold)) for score in (reduced, whole))
        self._unflagged += before and not after
        self._flagged += after and not before

    def told(self) -> DecodedWhole:
        """What was found so far."""
        changes = self._changes
        return {
            "model_id": self._judge.model.model_id,
            "decode": self._judge.model.policy.decode,
            "frames": len(changes),
            "largest": max(changes) if changes else None,
            "median": float(np.median(changes)) if changes else None,
            "spread": self._judge.calibration.normal_spread,
            "unflagged": self._unflagged,
            "flagged": self._flagged,
            "by_code": dict(sorted(self._by_code.items())),
        }
