"""`retroscan fuse`: one model of several fitted ones, which score together from one decoding.

Who joins is told by synthetic defects in normal images that no member was fitted on; real anomalous images are never
asked.
All in this process; no cluster is needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import reduce
from typing import Any

from ad_jobs.archive.identifiers import Identifiers, read_identifiers
from ad_jobs.archive.sources import read_source
from ad_jobs.errors import UsageError
from ad_jobs.fitting.cost import score_cpu_ms
from ad_jobs.fitting.fusion import Fitted, common_policy, fused
from ad_jobs.fitting.held_out_again import NormalImages, held_out_again
from ad_jobs.images.domain import Domain, DomainFile
from ad_jobs.images.policy import Limits
from ad_jobs.results.run import versions
from ad_jobs.scoring.calibration import Calibrated, calibrate_on
from ad_jobs.scoring.model_store import (
    SCORE_CPU_MS,
    FittedModel,
    demand_own,
    demand_writable,
    open_fitted,
    publish,
    read_fitted,
    read_record,
)
from ad_jobs.specs import FuseSpec, takes
from models.record import FORMAT
from models.registry import FUSED

log = logging.getLogger("retroscan.fuse")

# Of the first calibration, as a fit's.
MAX_FPR = 0.01


@takes(FuseSpec)
def fuse(spec: FuseSpec) -> dict[str, Any]:
    """Fuse, save and calibrate a model; its record (detector.json), whose part `fused` says who joined and why.

    Raises:
        UsageError: members that cannot score together, or that no common normal images can judge; a folder in use.
        JobError: no normal image decodes, or a score that is not finite.
    """
    models = {place: read_fitted(place) for place in spec.model}
    identifiers = read_identifiers(spec.identifiers, spec.identifiers_key)
    digest = _digest(spec, models, identifiers)
    done = read_record(spec.out)
    if done is not None:
        return _already(done, digest, spec.out)
    _demand_fittable(models)
    limits = _common_limits(models)
    # Before anything is read: what cannot score together is refused at once.
    domain = _common_domain(models.values())
    members = [
        Fitted(place, model.model_id, model.kind, model.policy, open_fitted(place)[1], model.record["source"])
        for place, model in models.items()
    ]
    common_policy(members)
    images = _images(spec, models, limits, domain.accepts)
    demand_writable(spec.out)
    fusion = fused(members, lambda policy: (one.pixels for one in images.frames(policy)))
    record = {
        "fuse": spec.config(),
        "fuse_digest": digest,
        "fused": {"normal": images.source, **fusion.told},
        "limits": limits.model_dump(),
        "versions": versions(),
        "fused_at": datetime.now(UTC).isoformat(timespec="seconds"),
        SCORE_CPU_MS: _cost(models, fusion.members),
    }
    domain = _common_domain([models[member.place] for member in fusion.members])

    def calibrated(model_id: str) -> Calibrated:
        return calibrate_on(
            fusion.detector,
            images.frames(fusion.policy),
            model_id=model_id,
            source=f"held out of {images.source}" if spec.normal is None else images.source,
            tiles=fusion.policy.tiles,
            identifiers=identifiers,
            max_fpr=MAX_FPR,
        )

    return publish(spec.out, FUSED.kind, fusion.detector, fusion.policy, record, domain, calibrated)


def _cost(models: Mapping[str, FittedModel], members: Iterable[Fitted]) -> float:
    """What the members cost an image of a CPU's milliseconds, all of its tiles where it is cut."""
    # Earlier versions did not write it.
    return sum(
        float(models[member.place].record.get(SCORE_CPU_MS) or score_cpu_ms(member.detector)) for member in members
    )


def _images(spec: FuseSpec, models: Mapping[str, FittedModel], limits: Limits, domain: Domain) -> NormalImages:
    """The normal images that judge the members: what is named, or what their fits held out."""
    if spec.normal is None:
        return held_out_again(models, limits)
    fitted_on = [place for place, model in models.items() if model.record.get("data", {}).get("normal") == spec.normal]
    if fitted_on:
        raise UsageError(
            "--normal is of images that no member was fitted on.",
            f"{spec.normal}, which {fitted_on[0]} was fitted on",
            "Name others; without --normal those are taken that the fits held out.",
        )
    return NormalImages(spec.normal, read_source(spec.normal), limits, domain)


def _demand_fittable(models: Mapping[str, FittedModel]) -> None:
    """Raise UsageError for what is no member."""
    for place, model in models.items():
        if model.kind == FUSED.kind:
            raise UsageError("Members are fitted models.", f"{place}, a fused one", "Name its members instead.")
        if model.record["format"] != FORMAT:
            raise UsageError(
                f"Members are models of format {FORMAT}.",
                f"{place}, of format {model.record['format']}",
                "Fit it again with this version.",
            )
    # Another domain makes no other detector.
    ids = [model.calibrated_as for model in models.values()]
    if len(set(ids)) < len(ids):
        raise UsageError("Members are different models.", ", ".join(models), "Leave out what is the same as another.")


def _common_limits(models: Mapping[str, FittedModel]) -> Limits:
    (first, one), *others = models.items()
    for place, model in others:
        if model.limits != one.limits:
            raise UsageError(
                "Members were fitted under the same limits.",
                f"{first}: {one.limits.model_dump()}; {place}: {model.limits.model_dump()}",
                "Fit them with the same --limits.",
            )
    return one.limits


def _common_domain(models: Iterable[FittedModel]) -> DomainFile:
    """What all of them take, and what their fits saw, if that is the same."""
    files = [model.domain for model in models]
    accepts = reduce(Domain.within, (file.accepts for file in files))
    seen = files[0].seen if all(file.seen == files[0].seen for file in files) else None
    return DomainFile(accepts=accepts, seen=seen)


def _digest(spec: FuseSpec, models: Mapping[str, FittedModel], identifiers: Identifiers) -> str:
    """16 hex digits over the members, the images that judge them, and how these name their institutions."""
    decides: list[Any] = [sorted(model.model_id for model in models.values()), spec.normal]
    # Fusions of earlier versions keep their digests.
    if identifiers.mode != "none":
        decides.append(identifiers.naming)
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]


def _already(record: dict[str, Any], digest: str, out: str) -> dict[str, Any]:
    demand_own(record, record.get("fuse_digest") == digest, out, "other members, or of a fit")
    log.info("%s already holds this very fusion (model %s): nothing to do.", out, record["model_id"])
    return record
