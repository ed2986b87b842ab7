"""What makes rows of a model's raw numbers: its threshold, its heatmaps' scale, and which heatmaps are kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ad_jobs.images.domain import Domain
from ad_jobs.results.heatmaps import on_scale
from ad_jobs.schema import is_flagged
from ad_jobs.scoring.model_store import CalibratedModel
from ad_jobs.specs import KeepPolicy


class Judgement(NamedTuple):
    """What makes rows of a model's raw numbers: its threshold, heatmap scale, and which heatmaps are kept."""

    model_id: str
    threshold: float
    heatmap_low: float
    heatmap_high: float
    # On the scale, in (0, 1): what is drawn half hot.
    heatmap_anchor: float
    heatmaps: KeepPolicy

    @classmethod
    def of(cls, model: CalibratedModel, heatmaps: KeepPolicy) -> Judgement:
        """How a model's numbers are judged by its calibration."""
        calibration = model.calibration
        return cls(
            model_id=model.model_id,
            threshold=calibration.threshold,
            heatmap_low=calibration.heatmap_low,
            heatmap_high=calibration.heatmap_high,
            heatmap_anchor=calibration.anchor_on_scale,
            heatmaps=heatmaps,
        )

    def flags(self, score: float) -> bool:
        """Whether a score is above the threshold, both as the table stores them: in float32."""
        return bool(is_flagged(score, self.threshold))

    def unit(self, heatmap: NDArray[np.float32]) -> NDArray[np.float32]:
        """A raw heatmap on the run's global scale, float32 in [0, 1]."""
        return on_scale(heatmap, self.heatmap_low, self.heatmap_high)


class ModelUse(NamedTuple):
    """One of the scan's models: how its numbers are judged, and which of the scan's policies its pixels follow.

    `domain` is what it is to score: its own domain, and what `--accept` adds.
    """

    judgement: Judgement
    policy: int
    domain: Domain = Domain()
