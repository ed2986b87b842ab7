"""`fit --detector auto`: candidates fitted within a time, judged by synthetic defects, and the best of them kept.

Candidates are models of their own, in the folder's fit/candidates: what is fitted already is not fitted again.
All hold the same images out, by which they are judged; no anomalous image is seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ad_jobs.archive.sources import SourceObject
from ad_jobs.errors import JobError, RetroscanError, UsageError
from ad_jobs.fitting.candidates import DEFAULT_BUDGET_S, FOLDER, Budget, Candidate, candidates
from ad_jobs.fitting.choosing import RULE, Option, chosen, fusion_of
from ad_jobs.fitting.synthetic import judge
from ad_jobs.scoring.calibration import Calibrated
from ad_jobs.scoring.model_domain import DOMAIN
from ad_jobs.scoring.model_store import demand_own, local_files, open_model, read_model, read_record, write_calibration
from ad_jobs.specs import AUTO, FitSpec
from ad_jobs.values import time_text
from cluster import storage
from cluster.errors import ClusterError
from models.record import DETECTOR, WEIGHTS

log = logging.getLogger("retroscan.fit")


class HeldOutFrames(NamedTuple):
    """Frames that a fit held out, uint16 [c, H, W] under its policy, and their digest as its record has it."""

    frames: list[NDArray[np.uint16]]
    sha256: str


class Fits(NamedTuple):
    """How a candidate is fitted, what it held out, and how several are fused.

    `fuse` takes the models' folders and the fused one's.
    """

    fit: Callable[[FitSpec], dict[str, Any]]
    held_out: Callable[[Candidate], HeldOutFrames]
    fuse: Callable[[Sequence[str], str], dict[str, Any]]


def already(spec: FitSpec, normal: Sequence[SourceObject]) -> dict[str, Any] | None:
    """The record of the model that this very command left, in whatever time; None where there is none.

    Raises:
        UsageError: another model lies there.
    """
    done = read_record(spec.out)
    if done is None:
        return None
    demand_own(
        done,
        done.get(AUTO, {}).get("digest") == _digest(spec, normal),
        spec.out,
        "another fit (other options or other images)",
    )
    log.info("%s already holds this very choice (model %s): nothing to do.", spec.out, done["model_id"])
    given_s, asked_s = done[AUTO]["budget_s"], spec.budget or DEFAULT_BUDGET_S
    if given_s != asked_s:
        given, asked = time_text(given_s), time_text(asked_s)
        log.warning("It was chosen with --budget %s: for a choice with %s name another --out.", given, asked)
    return done


def fit_best(spec: FitSpec, normal: Sequence[SourceObject], fits: Fits) -> dict[str, Any]:
    """Fit what the budget allows, and publish the best at `spec.out`; its record, with how it was chosen as `auto`.

    Raises:
        JobError: no candidate could be fitted.
    """
    started = time.monotonic()
    budget = Budget(spec.budget or DEFAULT_BUDGET_S)
    listed = candidates(spec, len(normal))
    largest = max(listed, key=lambda one: one.pixels)
    held_out: HeldOutFrames | None = None
    rows: dict[str, dict[str, Any]] = {}
    tried: list[Option] = []
    for one in listed:
        row = rows[one.kind] = {"detector": one.kind, "folder": one.spec.out}
        there = _there(one.spec.out, one.intent.digest(normal, []))
        if not there and not budget.allows(one):
            row["why"] = f"not tried: {_minutes(budget.expected_s(one))} expected, {_minutes(budget.left_s)} left"
            log.info("%s is %s.", one.kind, row["why"])
            continue
        log.info("%s: %s expected, %s left.", one.kind, *map(_minutes, (budget.expected_s(one), budget.left_s)))
        begun = time.monotonic()
        try:
            record = fits.fit(one.spec)
            held_out = held_out or fits.held_out(largest)
            _demand_same(record, held_out)
            detector = open_model(one.spec.out).detector
            judged = judge([detector], held_out.frames, seed=spec.seed, tiles=one.intent.policy.tiles)
        except (RetroscanError, ClusterError) as error:
            row["why"] = f"failed: {error}"
            log.warning("%s failed: %s", one.kind, error)
            budget.lost(time.monotonic() - begun)
            continue
        # What was fitted before took of the budget what it took then: a choice that was interrupted comes out the same.
        budget.took(one, float(record["seconds"]) if there else time.monotonic() - begun)
        tried.append(Option(one.kind, judged, float(record["score_cpu_ms"])))
        row |= {"model_id": record["model_id"], "seconds": record["seconds"], **_told(tried[-1])}
        log.info("%s tells synthetic defects from normal images with a mean AUROC of %.3f.", one.kind, row["found"])
    if not tried or held_out is None:
        why = "; ".join(f"{kind} {row['why']}" for kind, row in rows.items())
        raise JobError(f"None of the candidates could be fitted: {why}", "Look at the first, or name a --detector.")
    kept = _kept(spec, tried, rows, fits)
    for option in tried:
        rows[option.name]["why"] = "kept" if option is kept else "another was kept"
    auto = {
        "digest": _digest(spec, normal),
        "budget_s": budget.seconds,
        "seconds": round(time.monotonic() - started, 1),
        "judged_on": len(held_out.frames),
        "kinds": list(kept.judged.kinds),
        "kept": kept.name,
        "rule": RULE if len(tried) > 1 else "the only one that was fitted; --budget gives more of them time",
        "candidates": list(rows.values()),
    }
    return _publish(str(rows[kept.name]["folder"]), spec.out, auto)


def _there(folder: str, digest: str) -> bool:
    """Whether the candidate is fitted.

    Raises:
        UsageError: another fit lies there, or a damaged one.
    """
    record = read_record(folder)
    if record is None:
        return False
    if record.get("fit_digest") != digest:
        raise UsageError(
            "A choice that was interrupted goes on with the same images and options.",
            f"{folder}, which holds model {record['model_id']} of another fit",
            "Choose another --out, or remove the folder.",
        )
    return True


def _demand_same(record: dict[str, Any], held_out: HeldOutFrames) -> None:
    """Raise JobError for a fit that may have learned from what it would be judged by."""
    if record["data"]["held_out_sha256"] != held_out.sha256:
        raise JobError(
            "It held out other images than the one with the largest input, as an image decodes for one of them alone.",
            "Leave out what does not decode, or give a --size for all.",
        )


def _kept(spec: FitSpec, tried: list[Option], rows: dict[str, dict[str, Any]], fits: Fits) -> Option:
    """What is kept of those tried, or of them and their fusion, which is only made if it is that."""
    fusion = fusion_of(tried)
    if fusion is None:
        return chosen(tried)
    folder = storage.join(spec.out, "fit", FOLDER, fusion.name)
    row = rows[fusion.name] = {"detector": fusion.name, "folder": folder, **_told(fusion)}
    row["why"] = "not fused: another was kept"
    if (kept := chosen([*tried, fusion])) is not fusion:
        return kept
    begun = time.monotonic()
    try:
        record = fits.fuse([str(rows[tried[place].name]["folder"]) for place in fusion.members], folder)
    except RetroscanError as error:
        row["why"] = f"failed: {error}"
        log.warning("%s failed: %s", fusion.name, error)
        return chosen(tried)
    row |= {"model_id": record["model_id"], "seconds": round(time.monotonic() - begun, 1), "why": "kept"}
    return fusion


def _told(option: Option) -> dict[str, Any]:
    """What the table says of how one was judged."""
    auroc = option.judged.auroc()[:, 0]
    return {
        "score_cpu_ms": round(option.score_cpu_ms, 1),
        "auroc": {kind: round(float(value), 4) for kind, value in zip(option.judged.kinds, auroc, strict=True)},
        "found": round(option.found, 4),
    }


def _digest(spec: FitSpec, normal: Sequence[SourceObject]) -> str:
    """16 hex digits over all that may be tried and on which objects; time is given, and no option of what comes out."""
    tried = [one.intent.digest(normal, []) for one in candidates(spec, len(normal))]
    return hashlib.sha256(json.dumps(tried).encode()).hexdigest()[:16]


def _publish(candidate: str, out: str, auto: dict[str, Any]) -> dict[str, Any]:
    """Make the model in `candidate` the one in `out`: the same files and id, and in its record how it was chosen."""
    model = read_model(candidate)
    held_out = model.held_out_file()
    assert held_out is not None
    write_calibration(out, Calibrated(model.calibration, held_out))
    with local_files(candidate, (WEIGHTS, DOMAIN)) as folder:
        for name in (WEIGHTS, DOMAIN):
            storage.upload_file(folder / name, storage.join(out, name))
    record = {**model.record, AUTO: auto}
    # Last: a folder that has it is whole.
    storage.write_bytes(storage.join(out, DETECTOR), (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())
    return record


def _minutes(seconds: float) -> str:
    return f"{max(0.0, seconds) / 60:.1f} min"
