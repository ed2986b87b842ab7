"""`retroscan calibrate`: the threshold from held-out images, at a stated rate, with its interval."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from ad_jobs.archive.containers_names import group_of
from ad_jobs.archive.fetching import Source, fetch_all, prepare
from ad_jobs.archive.sources import read_source
from ad_jobs.images.domain import Domain
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.scoring.calibration import Calibration, calibrate_on
from ad_jobs.scoring.held_out import HeldOut, kept
from ad_jobs.scoring.model_store import FittedModel, open_fitted, write_calibration
from ad_jobs.specs import CalibrateSpec, takes

log = logging.getLogger("retroscan.calibrate")


@takes(CalibrateSpec)
def calibrate(spec: CalibrateSpec) -> Calibration:
    """The calibration just written beside the model: threshold and heatmap scale from the scores of held-out images.

    It is the current one from now on; those before it, and the scores that each came from, are kept.

    Raises:
        UsageError: no model there, or a source that cannot be used.
        JobError: no normal image decodes, or a score that is not finite.
    """
    model, detector = open_fitted(spec.model)
    domain = model.domain.accepts.widened(spec.accept)
    calibrated = calibrate_on(
        detector,
        _frames(spec.normal, model, domain),
        model_id=model.calibrated_as,
        source=" and ".join(filter(None, (spec.normal, spec.anomalous))),
        anomalous=_frames(spec.anomalous, model, domain) if spec.anomalous else (),
        max_fpr=spec.max_fpr,
        max_fnr=spec.max_fnr,
        margin=spec.margin,
    )
    write_calibration(model.uri, calibrated)
    return calibrated.calibration


def _frames(source: str, model: FittedModel, domain: Domain) -> Iterator[HeldOut]:
    """The frames of every object that decodes and that a scan would score."""
    listed = read_source(source)
    objects = [Source(number, o.uri, o.bytes, o.etag, o.within) for number, o in enumerate(listed)]
    with GuardedDecoder() as decoder:
        for fetched in fetch_all(objects, model.limits.max_bytes):
            ready = prepare(fetched, model.policy, model.limits, decoder, [domain])
            why = ready.error.code if ready.error is not None else ready.refused[0]
            if why is not None:
                log.warning("left out of the calibration: %s (%s)", ready.source.uri, why)
            group = listed[ready.source.object_id].group or ready.header.get("study_uid") or group_of(ready.source.uri)
            series = str(ready.header.get("series_uid") or group)
            header = kept(ready.header)
            for frame in ready.frames:
                yield HeldOut(frame.pixels, str(ready.content_sha256), frame.index, str(group), series, header)
