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

from ad_jobs.deciding.likeness import likeness
from ad_jobs.deciding.p_values import Reference, q_values
from ad_jobs.deciding.record import decisions, read_decision, record_of, table_of
from ad_jobs.deciding.rules import Ruled, ruled
from ad_jobs.deciding.table import levels, write
from ad_jobs.errors import UsageError
from ad_jobs.results.parts import sha256_of
from ad_jobs.results.run import ModelRef, RunRecord, held_out_copy, read_record, versions
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.results.seal import sealed
from ad_jobs.scoring.calibration import kept_held_out
from ad_jobs.scoring.held_out import read_held_out
from ad_jobs.scoring.model_store import kept_calibrations
from ad_jobs.specs import DecideSpec, takes
from cluster import storage


class _HeldOut(NamedTuple):
    """The held-out scores that a model's rows are judged against, and the calibration they belong to."""

    calibration_id: str | None
    sha256: str
    table: pa.Table


@takes(DecideSpec)
def decide(spec: DecideSpec) -> dict[str, Any]:
    """What the rule flags; also written to RUN/decisions/ID.json, its rows (deciding.table.DECISIONS) to ID.parquet.

    ID is 12 hex digits over the rule, the run and the held-out scores: decided again, it is the one that is there.
    Every model is decided by itself, against the held-out scores of the calibration that its rows were judged by, or of
    the one named by `calibration`.

    Raises:
        UsageError: not a finished run; held-out scores that are missing, changed, or too few for the rate.
        JobError: a part of the run is missing or damaged.
    """
    record = read_record(spec.run)
    table = ScoreTable(spec.run, record)
    held_out = {model.model_id: _held_out(spec, model) for model in record.models}
    decision_id = _id(spec, record, held_out)
    if decision_id in decisions(spec.run):
        return read_decision(spec.run, record, decision_id)
    normals = {model_id: _scores(found, anomalous=False) for model_id, found in held_out.items()}
    references = {model_id: Reference(scores) for model_id, scores in normals.items()}
    found = levels(table, references, {model_id: _objects(held) for model_id, held in held_out.items()})
    rules = {
        model_id: ruled(spec, references[model_id], _scores(held, anomalous=True), found[model_id].counts)
        for model_id, held in held_out.items()
    }
    of_levels = {
        model_id: q_values(found[model_id].counts, reference.p()) for model_id, reference in references.items()
    }
    with tempfile.TemporaryDirectory(prefix="retroscan-decide-") as folder:
        path = Path(folder) / "decision.parquet"
        flagged = write(table, references, of_levels, rules, path)
        content = {
            "version": 1,
            "decision_id": decision_id,
            "run_id": record.run_id,
            "run_digest": record.digest,
            "rule": spec.rule(),
            "models": [
                _told(held_out[model_id], references[model_id], found[model_id].counts, rules[model_id])
                | {"model_id": model_id, "flagged": flagged[model_id], "rows_of_held_out": found[model_id].held_out}
                for model_id in held_out
            ],
            "sha256": sha256_of(str(path))[0],
            "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "retroscan": versions()["retroscan"],
        }
        storage.upload_file(path, table_of(spec.run, decision_id))
    # Last: a decision that has its record is whole.
    written = sealed(content, None)
    storage.write_bytes(record_of(spec.run, decision_id), (json.dumps(written, indent=2) + "\n").encode())
    return written


def _held_out(spec: DecideSpec, model: ModelRef) -> _HeldOut:
    """The scores to judge a model's rows against.

    Raises:
        UsageError: there are none, they were changed, or hold no normal image.
    """
    if spec.calibration is None:
        calibration_id, sha256 = model.calibration_id, model.held_out_sha256
        uri = held_out_copy(spec.run, model.model_id)
    else:
        calibration_id, sha256 = _of_model(model, spec.calibration)
        uri = kept_held_out(model.uri, calibration_id)
    if sha256 is None:
        raise UsageError(
            "A decision is made against the held-out scores that a calibration kept.",
            f"model {model.model_id}, judged by a calibration of an earlier version, which kept none",
            f"Calibrate it again (retroscan calibrate {model.uri} --normal SOURCE --max-fpr 0.01), and name that "
            "calibration with --calibration current.",
        )
    return _HeldOut(calibration_id, sha256, read_held_out(uri, sha256))


def _of_model(model: ModelRef, wanted: str) -> tuple[str, str | None]:
    """Id and digest of a calibration that the model has now."""
    kept = kept_calibrations(model.uri)
    for one in reversed(kept):
        if wanted in ("current", one.id):
            return one.id, one.held_out_sha256
    raise UsageError(
        "A calibration is one that the run's model keeps.",
        f"{wanted}, which {model.uri} does not have",
        f"It has {', '.join(one.id for one in kept) or 'none'}; or leave --calibration out for that of the run.",
    )


def _scores(held: _HeldOut, *, anomalous: bool) -> Any:
    rows = held.table.filter(pc.equal(held.table["anomalous"], anomalous))
    return rows["score"].to_numpy().astype(np.float32)


def _objects(held: _HeldOut) -> pa.Array:
    return pc.unique(held.table["object"])


def _id(spec: DecideSpec, record: RunRecord, held_out: dict[str, _HeldOut]) -> str:
    deciding = {
        "rule": spec.rule(),
        "run": [record.run_id, record.digest],
        "held_out": {model_id: held.sha256 for model_id, held in held_out.items()},
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


def _told(held: _HeldOut, reference: Reference, counts: Any, rule: Ruled) -> dict[str, Any]:
    """What is recorded of a model's part, but for what is flagged."""
    normal = held.table.filter(pc.invert(held.table["anomalous"]))
    alike = likeness(counts)
    finite = rule.threshold is not None and np.isfinite(rule.threshold)
    return {
        "calibration_id": held.calibration_id,
        "held_out_sha256": held.sha256,
        "n_normal": reference.n,
        "n_groups": pc.count_distinct(normal["group"]).as_py(),
        "smallest_p": reference.smallest,
        # Null where it flags none, or goes by rank.
        "threshold": rule.threshold if finite else None,
        "scored": int(counts.sum()),
        "likeness": {**alike._asdict(), "doubtful": alike.doubtful},
    }
