"""`retroscan decide`: a rule over the scores of a finished run, into a table of its own; scores stay as they are."""

from __future__ import annotations

import hashlib
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.deciding.likeness import likeness
from ad_jobs.deciding.p_values import Reference, q_values
from ad_jobs.deciding.record import decisions, digest_of, read_decision, record_of, table_of
from ad_jobs.deciding.rules import ruled
from ad_jobs.deciding.studies import HeldOutStudies, decided, studies
from ad_jobs.deciding.table import levels, write
from ad_jobs.errors import UsageError
from ad_jobs.results.run import RunRecord, held_out_copy, read_record, versions
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.results.seal import sealed
from ad_jobs.scoring.calibration import Calibration, judged_by, kept_held_out
from ad_jobs.scoring.held_out import read_held_out
from ad_jobs.scoring.model_store import kept_calibrations, read_calibration
from ad_jobs.scoring.thresholds import clopper_pearson
from ad_jobs.specs import DecideSpec, takes
from cluster import storage


class _HeldOut(NamedTuple):
    """The held-out scores that a model's rows are judged against, and the calibration they belong to."""

    calibration_id: str | None
    sha256: str
    table: pa.Table


@takes(DecideSpec)
def decide(spec: DecideSpec) -> dict[str, Any]:
    """What the rule flags; also written to RUN/decisions/ID.json, its rows to ID.parquet.

    At the level `image` these are deciding.table.DECISIONS, at `study` deciding.studies.STUDIES.

    ID is 12 hex digits over the rule, the run and the held-out scores: decided again, it is the one that is there.
    Every model is decided by itself, against the held-out scores of the calibration that its rows were judged by, or of
    the one named by `calibration`.

    Raises:
        UsageError: not a finished run; held-out scores that are missing, changed, or too few for the rate.
        JobError: a part of the run is missing or damaged.
    """
    record = read_record(spec.run)
    table = ScoreTable(spec.run, record)
    held_out = _held_out(spec, record)
    decision_id = _id(spec, record, held_out)
    if decision_id in decisions(spec.run):
        return read_decision(spec.run, record, decision_id)
    normals = {model_id: _scores(held, anomalous=False) for model_id, held in held_out.items()}
    references = {model_id: Reference(scores) for model_id, scores in normals.items()}
    found = levels(table, references, {model_id: _objects(held) for model_id, held in held_out.items()})
    with tempfile.TemporaryDirectory(prefix="retroscan-decide-") as folder:
        path = Path(folder) / "decision.parquet"
        if spec.level == "study":
            parts = _of_studies(spec, table, held_out, path)
        else:
            counts = {model_id: of_model.counts for model_id, of_model in found.items()}
            parts = _of_frames(spec, table, held_out, references, counts, path)
        content = {
            "version": 1,
            "decision_id": decision_id,
            "run_id": record.run_id,
            "run_digest": record.digest,
            "rule": spec.rule(),
            "level": spec.level,
            "models": [
                {"model_id": model_id, **_told(held_out[model_id], part), "rows_of_held_out": found[model_id].held_out}
                for model_id, part in parts.items()
            ],
            "sha256": digest_of(str(path)),
            "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "retroscan": versions()["retroscan"],
        }
        storage.upload_file(path, table_of(spec.run, decision_id))
    # Last: a decision that has its record is whole.
    written = sealed(content, None)
    storage.write_bytes(record_of(spec.run, decision_id), (json.dumps(written, indent=2) + "\n").encode())
    return written


class _Part(NamedTuple):
    """A model's part of a decision: frames or studies, by the level of each, and what they were flagged by."""

    reference: Reference
    counts: NDArray[np.int64]
    # Of the scores; None where rows are flagged by something else.
    threshold: float | None
    flagged: int


def _of_frames(
    spec: DecideSpec,
    table: ScoreTable,
    held_out: dict[str, _HeldOut],
    references: dict[str, Reference],
    counts: dict[str, NDArray[np.int64]],
    path: Path,
) -> dict[str, _Part]:
    """Decide every frame by itself, into `path`."""
    rules = {
        model_id: ruled(spec, references[model_id], _scores(held, anomalous=True), counts[model_id])
        for model_id, held in held_out.items()
    }
    of_levels = {model_id: q_values(of_model) for model_id, of_model in counts.items()}
    flagged = write(table, references, of_levels, rules, path)
    return {
        model_id: _Part(references[model_id], counts[model_id], rule.threshold, flagged[model_id])
        for model_id, rule in rules.items()
    }


def _of_studies(spec: DecideSpec, table: ScoreTable, held_out: dict[str, _HeldOut], path: Path) -> dict[str, _Part]:
    """Decide every study as a whole, into `path`."""
    parts, rows = {}, []
    for model_id, found in studies(table, held_out).items():
        normal = _normal(held_out[model_id])
        of_studies = HeldOutStudies.of(normal["score"].to_numpy(), normal["group"].to_numpy())
        suspicion = of_studies.suspicion(found["score"].to_numpy(), found["frames"].to_numpy())
        reference = of_studies.studies
        counts = np.bincount(reference.levels(suspicion), minlength=reference.n + 1)
        rule = ruled(spec, reference, np.zeros(0, np.float32), counts)
        rows.append(decided(found, of_studies, suspicion, rule))
        parts[model_id] = _Part(reference, counts, None, int(pc.sum(rows[-1]["flagged"]).as_py() or 0))
    pq.write_table(pa.concat_tables(rows), path, compression="zstd")
    return parts


def _held_out(spec: DecideSpec, record: RunRecord) -> dict[str, _HeldOut]:
    """Of each model, the scores to judge its rows against.

    Raises:
        UsageError: there are none, they were changed, or hold no normal image.
    """
    named = {} if spec.calibration is None else _of_models(record, spec.run, spec.calibration)
    found = {}
    for model in record.models:
        calibration_id, sha256 = model.calibration_id, model.held_out_sha256
        uri = held_out_copy(spec.run, model.model_id)
        if (other := named.get(model.model_id)) is not None:
            calibration_id, sha256 = other.id, other.held_out_sha256
            uri = kept_held_out(model.uri, other.id)
        if sha256 is None:
            raise UsageError(
                "A decision is made against the held-out scores that a calibration kept.",
                f"model {model.model_id}, judged by a calibration of an earlier version, which kept none",
                f"Calibrate it again (retroscan calibrate {model.uri} --normal SOURCE --max-fpr 0.01), and name that "
                "calibration with --calibration current.",
            )
        held = _HeldOut(calibration_id, sha256, read_held_out(uri, sha256))
        if not _normal(held).num_rows:
            raise UsageError(
                "A decision is made against held-out normals.", f"{uri}, without one", "Calibrate the model again."
            )
        found[model.model_id] = held
    return found


def _of_models(record: RunRecord, run_uri: str, wanted: str) -> dict[str, Calibration]:
    """The calibration that is named, of each model that has it; `current` is what each has now.

    Raises:
        UsageError: none has it, or there is another model by now.
    """
    found, known = {}, []
    for model in record.models:
        then = judged_by(run_uri, model)
        calibrated_as = model.model_id if then is None else then.model_id
        if wanted == "current":
            found[model.model_id] = read_calibration(model.uri, calibrated_as)
            continue
        kept = {one.id: one for one in kept_calibrations(model.uri) if one.model_id == calibrated_as}
        known += list(kept)
        if wanted in kept:
            found[model.model_id] = kept[wanted]
    if not found:
        raise UsageError(
            "A calibration is one that a model of the run keeps.",
            f"{wanted}, which none has",
            f"They have {', '.join(known) or 'none'}; or leave --calibration out for that of the run.",
        )
    return found


def _normal(held: _HeldOut) -> pa.Table:
    return held.table.filter(pc.invert(held.table["anomalous"]))


def _scores(held: _HeldOut, *, anomalous: bool) -> NDArray[np.float32]:
    rows = held.table.filter(held.table["anomalous"]) if anomalous else _normal(held)
    found: NDArray[np.float32] = rows["score"].to_numpy()
    return found


def _objects(held: _HeldOut) -> pa.Array:
    return pc.unique(held.table["object"])


def _id(spec: DecideSpec, record: RunRecord, held_out: dict[str, _HeldOut]) -> str:
    deciding = {
        "rule": spec.rule(),
        "level": spec.level,
        "run": [record.run_id, record.digest],
        "held_out": {model_id: [held.calibration_id, held.sha256] for model_id, held in held_out.items()},
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


def _told(held: _HeldOut, part: _Part) -> dict[str, Any]:
    """What is recorded of a model's part."""
    alike = likeness(part.counts, part.reference)
    abnormal = _scores(held, anomalous=True)
    missed = int((abnormal <= part.threshold).sum()) if part.threshold is not None else None
    low, high = (None, None) if missed is None else clopper_pearson(missed, len(abnormal))
    return {
        "calibration_id": held.calibration_id,
        "held_out_sha256": held.sha256,
        # Frames or studies that p-values are counted in, and how many studies the frames are of.
        "n_normal": part.reference.n,
        "n_groups": pc.count_distinct(_normal(held)["group"]).as_py(),
        "smallest_p": part.reference.smallest,
        "n_anomalous": len(abnormal),
        # Of the held-out anomalous images, with the exact interval of the rate; null where none is by its score.
        "missed": {"count": missed, "low": low, "high": high},
        # Null where it flags none, or goes by something else.
        "threshold": part.threshold if part.threshold is not None and np.isfinite(part.threshold) else None,
        "scored": int(part.counts.sum()),
        "flagged": part.flagged,
        "likeness": {**alike._asdict(), "doubtful": alike.doubtful},
    }
