"""`retroscan calibrate`: the threshold from held-out images, at a stated rate, with its interval."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from ad_jobs.archive.fetching import Source, fetch_all, prepare
from ad_jobs.archive.sources import read_source
from ad_jobs.errors import JobError, UsageError
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.scoring.calibration import Calibration, HeatmapRange, Threshold, threshold_for_fnr, threshold_for_fpr
from ad_jobs.scoring.model_store import FittedModel, open_fitted, write_calibration
from ad_jobs.scoring.scorer import Scorer
from cluster import storage
from models.detector import Detector

log = logging.getLogger("retroscan.calibrate")


def calibrate(
    model: str,
    *,
    normal: str,
    anomalous: str | None = None,
    max_fpr: float | None = None,
    max_fnr: float | None = None,
    margin: float = 0.05,
) -> Calibration:
    """Score held-out images, set the threshold and the heatmap scale from them, and write calibration.json.

    Args:
        model: the model's folder, local or s3.
        normal: held-out normal images, of other patients or parts than those fitted on.
        anomalous: anomalous images; only for `max_fnr`.
        max_fpr: the share of these normals that may be flagged, in [0, 1).
        max_fnr: the share of these anomalous images that may be missed, in [0, 1).
        margin: with `max_fnr`, lowers the threshold by this share of its height.

    Raises:
        UsageError: not exactly one of the two rates, a rate out of range, or images that are missing for it.
    """
    if (max_fpr is None) == (max_fnr is None):
        raise UsageError(
            "A threshold follows from one rate.",
            f"--max-fpr {max_fpr}, --max-fnr {max_fnr}",
            "Give either --max-fpr 0.01 or --max-fnr 0.",
        )
    for name, rate in (("--max-fpr", max_fpr), ("--max-fnr", max_fnr)):
        if rate is not None and not 0 <= rate < 1:
            raise UsageError(f"{name} is a share, at least 0 and below 1.", rate, f"Give for example {name} 0.01.")
    if not 0 <= margin < 1:
        raise UsageError("--margin is a share, at least 0 and below 1.", margin, "Give for example --margin 0.05.")
    if max_fnr is not None and anomalous is None:
        raise UsageError(
            "--max-fnr is judged on anomalous images.",
            "no --anomalous",
            "Name some with --anomalous SOURCE, or use --max-fpr.",
        )
    if max_fpr is not None and anomalous is not None:
        raise UsageError(
            "--max-fpr is judged on normal images alone.", f"--anomalous {anomalous}", "Leave it out, or use --max-fnr."
        )
    opened, detector = open_fitted(model)
    normals = [Source(number, o.uri, o.bytes) for number, o in enumerate(read_source(normal))]
    anomalies = [Source(number, o.uri, o.bytes) for number, o in enumerate(read_source(anomalous))] if anomalous else []
    source = storage.absolute(normal) + (f" and {storage.absolute(anomalous)}" if anomalous else "")
    calibration = calibrate_on(
        detector,
        _pixels(normals, opened),
        model_id=opened.model_id,
        anomalous=_pixels(anomalies, opened),
        max_fpr=max_fpr,
        max_fnr=max_fnr,
        margin=margin,
        source=source,
    )
    write_calibration(opened.uri, calibration)
    return calibration


def calibrate_on(
    detector: Detector,
    normal: Iterable[NDArray[np.uint16]],
    *,
    model_id: str,
    source: str,
    anomalous: Iterable[NDArray[np.uint16]] = (),
    max_fpr: float | None = None,
    max_fnr: float | None = None,
    margin: float = 0.0,
) -> Calibration:
    """A calibration from images that are already decoded, uint16 [c, H, W]; heatmap scale from the normals alone."""
    scorer = Scorer(detector)
    heat = HeatmapRange()
    normal_scores = []
    for frame in scorer.score(normal):
        _demand_finite(frame.finite)
        normal_scores.append(frame.score)
        heat.add(frame.heatmap)
    if not normal_scores:
        raise JobError(
            "A calibration needs normal images that decode, for the heatmaps' scale.", "Name others with --normal."
        )
    anomalous_scores = []
    for frame in scorer.score(anomalous):
        _demand_finite(frame.finite)
        anomalous_scores.append(frame.score)
    found = _threshold(normal_scores, anomalous_scores, max_fpr, max_fnr, margin)
    low, high = heat.scale()
    return Calibration(
        model_id=model_id,
        n_normal=len(normal_scores),
        n_anomalous=len(anomalous_scores),
        heatmap_low=low,
        heatmap_high=high,
        source=source,
        set_at=datetime.now(UTC).isoformat(timespec="seconds"),
        **found.model_dump(),
    )


def _threshold(
    normal: list[float], anomalous: list[float], max_fpr: float | None, max_fnr: float | None, margin: float
) -> Threshold:
    if max_fpr is not None:
        return threshold_for_fpr(np.array(normal, np.float32), max_fpr)
    assert max_fnr is not None
    return threshold_for_fnr(np.array(anomalous, np.float32), max_fnr, margin)


def _demand_finite(finite: bool) -> None:
    if not finite:
        raise JobError(
            "The detector gave a score that is not finite on a held-out image.",
            "Fit it again, with a lower learning rate.",
        )


def _pixels(sources: list[Source], model: FittedModel) -> Iterator[NDArray[np.uint16]]:
    with GuardedDecoder() as decoder:
        for fetched in fetch_all(sources, model.limits.max_bytes):
            ready = prepare(fetched, model.policy, model.limits, decoder)
            if ready.error is not None:
                log.warning("left out of the calibration: %s (%s)", ready.source.uri, ready.error.code)
            for frame in ready.frames:
                yield frame.pixels
