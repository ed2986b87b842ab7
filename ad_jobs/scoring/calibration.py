"""What held-out images say of a model: its threshold, and the global scale of its heatmaps."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError, model_validator

from ad_jobs.archive.identifiers import Identifiers, Naming
from ad_jobs.errors import JobError, UsageError, flaw
from ad_jobs.images.policy import Tiles
from ad_jobs.images.tiling import SAME
from ad_jobs.results.heatmaps import EARLIER_ANCHOR
from ad_jobs.results.run import ModelRef, calibration_copy
from ad_jobs.scoring.held_out import UNNAMED, HeldOut, Origin, Scored, to_parquet
from ad_jobs.scoring.thresholds import Threshold, threshold_for_fnr, threshold_for_fpr
from cluster import storage

# Torch stands behind it, and who reads a calibration does without.
if TYPE_CHECKING:
    from models.detector import Detector

# The name of a model's current calibration in its folder; below KEPT are all that it ever had.
CALIBRATION = "calibration.json"
KEPT = "calibrations"
# The scale's top is so many times as far above the typical normal pixel as its anchor: next to nothing is clipped, and
# of the 65,536 steps of a stored heatmap 8,192 lie below the anchor.
HEADROOM = 8.0
# Institutions are not named unless somebody asks for it.
NAMELESS = Identifiers("none")


class Calibration(Threshold):
    """calibration.json: a threshold, the images it came from, and the global scale of heatmaps."""

    model_id: str
    n_normal: int
    n_anomalous: int
    # The standard deviation of what the normal images scored; earlier versions did not write it.
    normal_spread: float | None = None
    # The scale of stored heatmaps, in raw numbers; what is drawn half hot is the anchor.
    # That is the threshold, where a score is its heatmap's maximum, so that half of the scale is where an image is
    # flagged; of other detectors what the hottest thousandth of normal pixels reaches.
    # Earlier versions wrote none: see `anchor`.
    heatmap_low: float
    heatmap_high: float
    heatmap_anchor: float | None = None
    source: str
    set_at: str
    # What is held out together: studies, parts, containers; of the normal images. Earlier versions did not tell.
    n_groups: int | None = None
    # Of the file with the scores it came from, which earlier versions did not keep.
    held_out_sha256: str | None = None

    @model_validator(mode="after")
    def _anchored_within(self) -> Self:
        # Of a scale without a height nothing lies within.
        if not (self.heatmap_low < self.heatmap_high and 0 < self.anchor_on_scale < 1):
            raise ValueError("heatmap_anchor must lie between heatmap_low and heatmap_high")
        return self

    @property
    def id(self) -> str:
        """12 hex digits over what it says and the scores it came from, whenever and wherever that was."""
        # What it does not say is left out, so that a field that a later version adds gives an earlier one no other id.
        said = self.model_dump(mode="json", exclude={"set_at", "source"}, exclude_none=True)
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def anchor_on_scale(self) -> float:
        """Where the anchor lies on the scale of stored heatmaps, in (0, 1)."""
        if self.heatmap_anchor is None:
            return EARLIER_ANCHOR
        return (self.heatmap_anchor - self.heatmap_low) / (self.heatmap_high - self.heatmap_low)

    @property
    def anchor(self) -> float:
        """The raw value of a heatmap that is drawn half hot."""
        return self.heatmap_low + self.anchor_on_scale * (self.heatmap_high - self.heatmap_low)

    def scale_at(self, threshold: float) -> HeatmapScale:
        """The scale of heatmaps under another threshold, which its anchor follows if it is this one's."""
        follows = self.anchor == self.threshold and threshold > self.heatmap_low
        anchor = threshold if follows else self.anchor
        high = self.heatmap_low + HEADROOM * (anchor - self.heatmap_low) if follows else self.heatmap_high
        return HeatmapScale(self.heatmap_low, anchor, high)

    @property
    def guessed(self) -> bool:
        """Whether there were too few normal images for the rate: not one of them might have been flagged."""
        return self.rule == "max_fpr" and self.target * self.n_normal < 1


class Calibrated(NamedTuple):
    """A calibration, and the file (held_out.HELD_OUT, as Parquet) of the scores it came from."""

    calibration: Calibration
    held_out: bytes


def kept_calibration(uri: str, calibration_id: str) -> str:
    """Where the model at `uri` keeps a calibration."""
    return storage.join(uri, KEPT, f"{calibration_id}.json")


def kept_held_out(uri: str, calibration_id: str) -> str:
    """Where the model at `uri` keeps the scores that a calibration came from."""
    return storage.join(uri, KEPT, f"{calibration_id}.parquet")


def judged_by(run_uri: str, model: ModelRef, *, copy_alone: bool = False) -> Calibration | None:
    """The calibration that a run's rows of this model were judged by; None where it is not to be found any more.

    Runs of version 1 kept no copy: theirs is the model's, while it is the same, unless `copy_alone`.
    """
    kept = (calibration_copy(run_uri, model.model_id), model.kept_calibration_sha256 or model.calibration_sha256)
    beside_the_model = (storage.join(model.uri, CALIBRATION), model.calibration_sha256)
    for uri, digest in [kept] if copy_alone else [kept, beside_the_model]:
        try:
            body = storage.read_bytes(uri)
            if hashlib.sha256(body).hexdigest() == digest:
                return Calibration.model_validate_json(body)
        except (storage.StorageError, ValidationError):
            # Who asks says what it means that there is none.
            continue
    return None


def calibrate_on(
    detector: Detector,
    normal: Iterable[HeldOut],
    *,
    model_id: str,
    source: str,
    anomalous: Iterable[HeldOut] = (),
    tiles: Tiles | None = None,
    identifiers: Identifiers = NAMELESS,
    max_fpr: float | None = None,
    max_fnr: float | None = None,
    margin: float = 0.0,
) -> Calibrated:
    """A calibration from frames that are already decoded; heatmap scale from the normals alone.

    `tiles` is how frames are cut, if they are; `identifiers` say how the institutions are named that they are from.

    Raises:
        JobError: there is no normal frame, or a score that is not finite.
        UsageError: a rate of misses, and no anomalous frame.
    """
    from ad_jobs.scoring.scorer import Scorer

    scorer = Scorer(detector, tiles=tiles)
    heat = HeatmapRange()
    scored: list[Scored] = []
    for frames, abnormal in ((normal, False), (anomalous, True)):
        # Where they are from; their pixels are let go.
        origins: deque[Origin] = deque()
        for result in scorer.score(_noting(frames, origins)):
            if not result.finite:
                raise JobError(
                    "The detector gave a score that is not finite on a held-out image.",
                    "Fit it again, with a lower learning rate.",
                )
            scored.append(origins.popleft().named_by(identifiers).scored(abnormal, result.score))
            if not abnormal:
                heat.add(result.heatmap, result.score)
    if all(one.anomalous for one in scored):
        raise JobError(
            "A calibration needs normal images that decode, for the heatmaps' scale.", "Name others with --normal."
        )
    return calibration_from(
        scored,
        model_id=model_id,
        source=source,
        heatmap_scale=heat.scale,
        naming=identifiers.naming,
        max_fpr=max_fpr,
        max_fnr=max_fnr,
        margin=margin,
    )


def calibration_from(
    scored: Sequence[Scored],
    *,
    model_id: str,
    source: str,
    heatmap_scale: Callable[[float], HeatmapScale],
    naming: Naming = UNNAMED,
    max_fpr: float | None = None,
    max_fnr: float | None = None,
    margin: float = 0.0,
) -> Calibrated:
    """A calibration from frames that are already scored, some of them normal; `heatmap_scale` takes the threshold.

    `naming` is how the frames name their institutions.

    Raises:
        UsageError: a rate of misses, and no anomalous frame.
    """
    normal_scores = [one.score for one in scored if not one.anomalous]
    abnormal_scores = [one.score for one in scored if one.anomalous]
    found = _threshold(normal_scores, abnormal_scores, max_fpr, max_fnr, margin)
    scale = heatmap_scale(found.threshold)
    held_out = to_parquet(scored, naming)
    calibration = Calibration(
        model_id=model_id,
        n_normal=len(normal_scores),
        n_anomalous=len(abnormal_scores),
        n_groups=len({one.group or place for place, one in enumerate(scored) if not one.anomalous}),
        normal_spread=float(np.std(normal_scores)),
        heatmap_low=scale.low,
        heatmap_high=scale.high,
        heatmap_anchor=scale.anchor,
        source=source,
        set_at=datetime.now(UTC).isoformat(timespec="seconds"),
        held_out_sha256=hashlib.sha256(held_out).hexdigest(),
        **found.model_dump(),
    )
    return Calibrated(calibration, held_out)


def _threshold(
    normal: list[float], anomalous: list[float], max_fpr: float | None, max_fnr: float | None, margin: float
) -> Threshold:
    if max_fpr is not None:
        return threshold_for_fpr(np.array(normal, np.float32), max_fpr)
    assert max_fnr is not None
    return threshold_for_fnr(np.array(anomalous, np.float32), max_fnr, margin)


def _noting(frames: Iterable[HeldOut], origins: deque[Origin]) -> Iterator[NDArray[np.uint16]]:
    for one in frames:
        origins.append(one.origin)
        yield one.pixels


class HeatmapScale(NamedTuple):
    """Raw values of heatmaps: `low` is stored as 0, `high` as 1, and `anchor` is drawn half hot."""

    low: float
    anchor: float
    high: float


class HeatmapRange:
    """Where the pixels of normal heatmaps lie, in bounded memory: each map gives its quantiles, not its pixels."""

    def __init__(self) -> None:
        self._low: list[float] = []
        self._high: list[float] = []
        self._score_is_maximum = True

    def add(self, heatmap: NDArray[np.float32], score: float) -> None:
        low, high = np.quantile(heatmap, [0.01, 0.999])
        self._low.append(float(low))
        self._high.append(float(high))
        self._score_is_maximum &= bool(np.isclose(heatmap.max(), score, rtol=SAME, atol=0))

    def scale(self, threshold: float) -> HeatmapScale:
        """The global scale, anchored at the threshold where scores are maxima of heatmaps.

        Otherwise, and where the threshold is below what is cold, it is anchored at what the hottest thousandth of
        normal pixels reaches, of all but the hottest hundredth of images.
        """
        low = float(np.median(self._low))
        anchor = threshold if self._score_is_maximum else float(np.quantile(self._high, 0.99))
        if not anchor > low:
            anchor = float(np.quantile(self._high, 0.99))
        # A detector whose maps of normals are flat.
        if not anchor > low:
            anchor = low + max(abs(low), 1e-6)
        return HeatmapScale(low, anchor, low + HEADROOM * (anchor - low))


class Kept(NamedTuple):
    """Calibrations from the first to the last; and of those that are damaged, by id, what is to be said of them."""

    calibrations: list[Calibration]
    damaged: dict[str, UsageError]


def kept_calibrations(uri: str) -> Kept:
    """Every calibration that the model at `uri` keeps."""
    folder = storage.join(uri, KEPT)
    names = storage.list_names(folder) if storage.is_folder(folder) else []
    found, damaged = [], {}
    for name in names:
        if not name.endswith(".json"):
            continue
        try:
            found.append(Calibration.model_validate_json(storage.read_bytes(storage.join(folder, name))))
        except ValidationError as error:
            damaged[name.removesuffix(".json")] = UsageError(
                "What a model keeps of its calibrations stays as it was written.",
                f"{storage.join(folder, name)}: {flaw(error)}",
                "Restore the file, or remove it.",
            )
    return Kept(sorted(found, key=lambda one: (one.set_at, one.id)), damaged)
