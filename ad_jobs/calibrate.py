"""`retroscan calibrate`: the threshold from held-out images, at a stated rate, with its interval."""

from __future__ import annotations

from collections.abc import Iterator

from ad_jobs.archive.identifiers import Identifiers, read_identifiers
from ad_jobs.archive.sources import read_source
from ad_jobs.errors import UsageError
from ad_jobs.evaluation.reviewed_scores import reviewed_scores
from ad_jobs.images.domain import Domain
from ad_jobs.results.run import read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.scoring.calibration import Calibrated, Calibration, calibrate_on, calibration_from
from ad_jobs.scoring.frames import frames_of
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import FittedModel, open_fitted, read_calibration, read_fitted, write_calibration
from ad_jobs.specs import CalibrateSpec, takes


@takes(CalibrateSpec)
def calibrate(spec: CalibrateSpec) -> Calibration:
    """The calibration just written beside the model: threshold and heatmap scale from the scores of held-out images.

    With `from_reviews` the scores are a run's: what was accepted or supplemented is anomalous, all others are normal
    (evaluation.reviewed_scores), and the heatmaps' scale stays that of the current calibration.
    It is the current one from now on; those before it, and the scores that each came from, are kept.

    Raises:
        UsageError: no model there, or a source that cannot be used; a run of another model, or without reviews.
        JobError: no normal image decodes, or a score that is not finite.
    """
    identifiers = read_identifiers(spec.identifiers, spec.identifiers_key)
    if spec.from_reviews is None:
        calibrated = _by_images(spec, identifiers)
    else:
        calibrated = _by_reviews(spec, spec.from_reviews, identifiers)
    write_calibration(spec.model, calibrated)
    return calibrated.calibration


def _by_images(spec: CalibrateSpec, identifiers: Identifiers) -> Calibrated:
    model, detector = open_fitted(spec.model)
    domain = model.domain.accepts.widened(spec.accept)
    return calibrate_on(
        detector,
        _frames(str(spec.normal), model, domain),
        model_id=model.calibrated_as,
        source=" and ".join(filter(None, (spec.normal, spec.anomalous))),
        anomalous=_frames(spec.anomalous, model, domain) if spec.anomalous else (),
        tiles=model.policy.tiles,
        identifiers=identifiers,
        max_fpr=spec.max_fpr,
        max_fnr=spec.max_fnr,
        margin=spec.margin,
    )


def _by_reviews(spec: CalibrateSpec, run: str, identifiers: Identifiers) -> Calibrated:
    """No image is scored: scores are the run's, and the heatmaps' scale is the current one's at the new threshold."""
    model, record = read_fitted(spec.model), read_record(run)
    if model.model_id not in [one.model_id for one in record.models]:
        raise UsageError(
            "A model is calibrated from reviews of a run by this very model.",
            f"{spec.model}, {model.model_id}; the run's: {', '.join(one.model_id for one in record.models)}",
            "Name another run, or give --normal SOURCE.",
        )
    current = read_calibration(spec.model, model.calibrated_as)
    scored = reviewed_scores(ScoreTable(run, record), model.model_id, identifiers)
    if all(one.anomalous for one in scored):
        raise UsageError("A calibration needs normal images.", f"{run}, without one", "Give --normal SOURCE.")
    return calibration_from(
        scored,
        model_id=model.calibrated_as,
        source=f"reviews of {run}",
        heatmap_scale=current.scale_at,
        naming=identifiers.naming,
        max_fpr=spec.max_fpr,
        max_fnr=spec.max_fnr,
        margin=spec.margin,
    )


def _frames(source: str, model: FittedModel, domain: Domain) -> Iterator[HeldOut]:
    """The frames of every object that decodes and that a scan would score."""
    return frames_of(read_source(source), model.policy, model.limits, domain, "the calibration")
