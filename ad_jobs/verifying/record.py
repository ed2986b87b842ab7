"""Does run.json say what follows from the models, the calibrations and the manifest, and is it as it was written?"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ad_jobs.archive.identifiers import is_hashed
from ad_jobs.errors import RetroscanError, UsageError
from ad_jobs.images.policy import Limits
from ad_jobs.results.run import RUN_FILE, ModelRef, RunRecord, held_out_copy
from ad_jobs.results.seal import Signature, digest_holds, signature_of
from ad_jobs.scanning.intent import id_of_run
from ad_jobs.scoring.calibration import Calibration, judged_by
from ad_jobs.scoring.held_out import held_out_file
from ad_jobs.scoring.model_store import FittedModel, open_fitted
from ad_jobs.verifying.run_archive import RunArchive, accepted
from cluster import storage
from models.detector import Detector
from models.errors import DetectorError


def check_seal(run_uri: str, record: RunRecord, key: bytes | None) -> tuple[Signature, list[str]]:
    """Who wrote run.json, and whether it was changed since; with `key` it must be signed."""
    try:
        content = json.loads(storage.read_bytes(storage.join(run_uri, RUN_FILE)), object_pairs_hook=_named_once)
    except ValueError as error:
        return Signature.WRONG, [f"run.json: {error}"]
    differences = []
    # Version 1 had none.
    if (record.version > 1 or record.digest is not None) and not digest_holds(content):
        differences.append("run.json: its digest is not that of what it says: it was changed")
    signature = signature_of(content, key)
    if key is not None and signature is not Signature.SIGNED:
        with_what = "is not by this key" if signature is Signature.WRONG else "is missing, and a key was given"
        differences.append(f"run.json: its signature {with_what}")
    return signature, differences


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; raises ValueError for a name that stands in it twice: RFC 8259 4 leaves open which counts."""
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} twice")
    return dict(pairs)


def check_config(record: RunRecord) -> list[str]:
    """Where the request that the record holds contradicts the rest of it."""
    hashed = record.config.get("identifiers") == "hashed"
    wanted: dict[str, Any] = {"model": [model.uri for model in record.models]}
    if not hashed:
        wanted |= {"source": record.source, "where": record.manifest.where}
    differences = [
        f"run.json: config.{name} is {record.config.get(name)!r}, and the run says {value!r}"
        for name, value in wanted.items()
        if name in record.config and record.config[name] != value
    ]
    parent = record.parent
    asked = (record.config.get("since"), record.config.get("retry"))
    if asked != ((parent.uri, parent.retry) if parent else (None, None)):
        differences.append(f"run.json: config.since and config.retry are {asked}, and the run's parent is {parent}")
    if accepted(record) is None:
        differences.append(f"run.json: config.accept is {record.config['accept']!r}, which names no fields of a domain")
    if record.ended_at < record.started_at:
        differences.append(f"run.json: it ended at {record.ended_at}, before it started at {record.started_at}")
    return differences


def check_run_id(record: RunRecord, archive: RunArchive) -> list[str]:
    """Whether the run's id follows from what decided its table; of hashed ones nobody knows without the key."""
    if archive.identifiers is None or is_hashed(record.manifest.where):
        return []
    found = id_of_run(
        archive.manifest.digest,
        record.manifest.where,
        record.models,
        Limits.model_validate(record.config["limits"]),
        archive.identifiers,
        record.parent,
        heatmaps=record.config["heatmaps"],
        amp=bool(record.config.get("amp")),
        chapter_objects=record.chapter_objects,
        accept=accepted(record) or (),
    )
    if found == record.run_id:
        return []
    return [f"run.json: run_id is {record.run_id}, and manifest, condition, models, limits and options give {found}"]


class Judge(NamedTuple):
    """A model of the run as it is now, and the calibration its rows were judged by."""

    model: FittedModel
    detector: Detector
    calibration: Calibration


def check_model(run_uri: str, recorded: ModelRef, *, kept: bool) -> tuple[Judge | None, list[str]]:
    """The model, ready to score, and how it and its calibration differ from what the record says of them.

    None where it is gone, damaged or another one. `kept`: the run has a copy of the calibration.
    """
    called = f"model {recorded.uri}"
    calibration = judged_by(run_uri, recorded, copy_alone=kept)
    if calibration is None:
        return None, [f"{called}: the calibration of the run is gone, or was changed (sha256 in run.json)"]
    try:
        model, detector = open_fitted(recorded.uri)
    except (RetroscanError, DetectorError, storage.StorageError) as error:
        return None, [f"{called}: {error}"]
    then_and_now = [
        ("model_id", recorded.model_id, model.model_id),
        ("kind", recorded.kind, model.kind),
        ("weights sha256", recorded.weights_sha256, model.record["weights_sha256"]),
        ("policy", recorded.policy, model.policy.model_dump(mode="json")),
        ("threshold", recorded.threshold, calibration.threshold),
        ("heatmap_low", recorded.heatmap_low, calibration.heatmap_low),
        ("heatmap_high", recorded.heatmap_high, calibration.heatmap_high),
        ("heatmap_anchor", recorded.heatmap_anchor, calibration.heatmap_anchor),
        ("calibration's model_id", model.calibrated_as, calibration.model_id),
        ("sha256 of the held-out scores", recorded.held_out_sha256, calibration.held_out_sha256),
    ]
    if recorded.calibration_id is not None:
        then_and_now.append(("calibration's id", recorded.calibration_id, calibration.id))
    if recorded.detector_sha256 is not None:
        then_and_now.append(("sha256 of detector.json", recorded.detector_sha256, model.record_sha256))
    differences = [f"{called}: {name} is {now}; run.json has {then}" for name, then, now in then_and_now if now != then]
    if recorded.held_out_sha256 is not None:
        try:
            held_out_file(held_out_copy(run_uri, recorded.model_id), recorded.held_out_sha256)
        except UsageError as error:
            differences.append(f"{called}: {error}")
    same = model.model_id == recorded.model_id
    return (Judge(model, detector, calibration) if same else None), differences
