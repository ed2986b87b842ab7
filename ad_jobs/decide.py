"""`retroscan decide`: a rule over the scores of a finished run, into a table of its own; scores stay as they are."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ad_jobs.deciding.cells import By, divided_by
from ad_jobs.deciding.gathering import gather
from ad_jobs.deciding.held_out import held_out_scores
from ad_jobs.deciding.judges import FrameJudge, HeldOutScores, Judges, check_columns
from ad_jobs.deciding.reach import beyond_reach, sizes_of
from ad_jobs.deciding.record import decisions, read_decision, record_of, table_of
from ad_jobs.deciding.rules import needed
from ad_jobs.deciding.run_stacks import instance_numbers, publish_run_stacks, write_run_stacks
from ad_jobs.deciding.sites import check_sites
from ad_jobs.deciding.stacks import NUMBER, StackJudge, Stacks
from ad_jobs.deciding.table import Frames, HeldOutRows, Units, levels, write
from ad_jobs.deciding.told import told, verdicts
from ad_jobs.deciding.units import units_of
from ad_jobs.deciding.worklist import write_worklist
from ad_jobs.results.delivery import check_beside, digest_of
from ad_jobs.results.run import RunRecord, read_record, versions
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.results.seal import sealed
from ad_jobs.results.tables import check_workbook
from ad_jobs.run_specs import DecideSpec
from ad_jobs.specs import takes
from cluster import storage

# Of what a decision of studies has; with another the same rule is another decision.
STACKS_VERSION = 2


@takes(DecideSpec)
def decide(spec: DecideSpec) -> dict[str, Any]:
    """What the rule flags; also written to RUN/decisions/ID.json, its rows to ID.parquet.

    At the level `image` these are deciding.table.DECISIONS, else deciding.stacks.STACK_DECISIONS; RUN/studies.parquet
    or RUN/series.parquet is then written, too.

    ID is 12 hex digits over the rule, the run and the held-out scores: decided again, it is the one that is there.
    What is decided are the run's own rows; of a run that was made since another none of that one's.
    Every model is decided by itself, against the held-out scores of the calibration that its rows were judged by, or of
    the one named by `calibration`; with `by`, every group that has enough of them by its own.
    With `worklist` what is flagged is also written there, by rank, as CSV or XLSX; the result names it.

    Raises:
        UsageError: not a finished run; held-out scores that are missing, changed, or too few for the rate; columns that
            they do not have; a work list where something lies.
        JobError: a part of the run is missing or damaged.
    """
    if spec.worklist is not None:
        check_beside(spec.run, spec.worklist, "--worklist")
        check_workbook(spec.worklist, "--worklist")
    record = read_record(spec.run)
    found = _decision(spec, record)
    if spec.worklist is None:
        return found
    write_worklist(ScoreTable(spec.run, record), found, spec.worklist)
    return {**found, "worklist": spec.worklist}


def _decision(spec: DecideSpec, record: RunRecord) -> dict[str, Any]:
    """The record of the decision, made now unless it is there."""
    held_out = held_out_scores(spec.run, record, spec.calibration)
    decision_id = _id(spec, record, held_out)
    if decision_id in decisions(spec.run):
        return read_decision(spec.run, record, decision_id)
    by = divided_by(spec.by, spec.run, record)
    check_sites(by, held_out)
    seen = HeldOutRows(held_out)
    with tempfile.TemporaryDirectory(prefix="retroscan-decide-") as folder:
        path = Path(folder) / "decision.parquet"
        units, judges = _decided(spec, record, held_out, by, seen, Path(folder) / "gathered.parquet")
        counts = levels(units, judges)
        of_cells = verdicts(spec, judges, held_out, counts)
        flagged = write(units, judges, of_cells, path)
        beyond = beyond_reach(spec, judges, sizes_of(units)) if isinstance(units, Stacks) else {}
        content = {
            "version": 1,
            "decision_id": decision_id,
            "run_id": record.run_id,
            "run_digest": record.digest,
            "since": _since(record),
            "rule": spec.rule(),
            "level": spec.level,
            # What is decided, in words.
            "units": units_of(spec.level, ScoreTable(spec.run, record)),
            "by": list(spec.by),
            "models": [
                {
                    "model_id": model_id,
                    **told(model_id, held, by.columns, judges, counts, of_cells, flagged),
                    "rows_of_held_out": seen.count[model_id],
                    # Studies that no score would have flagged; null where there are none.
                    "beyond_reach": beyond.get(model_id),
                }
                for model_id, held in held_out.items()
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


def _decided(
    spec: DecideSpec, record: RunRecord, held_out: dict[str, HeldOutScores], by: By, seen: HeldOutRows, gathered: Path
) -> tuple[Units, Judges[Any]]:
    """What is decided, and by what; studies and series are gathered in a local file."""
    table = ScoreTable(spec.run, record)
    if spec.level == "image":
        return Frames(table, held_out, by, seen), Judges(held_out, by.columns, FrameJudge.of, needed(spec))
    for held in held_out.values():
        check_columns(held, [NUMBER[spec.level]], f"--level {spec.level}")
    judges = Judges(held_out, by.columns, StackJudge.of_level(spec.level), needed(spec))
    gather(table, held_out, spec.level, gathered, by=by, numbers=instance_numbers(spec.run, record), held_out=seen)
    if by.columns:
        write_run_stacks(spec.run, record, table, spec.level)
    else:
        publish_run_stacks(spec.run, record, gathered, spec.level)
    return Stacks(gathered, held_out, by), judges


def _since(record: RunRecord) -> dict[str, Any] | None:
    """Of a run that was made since another: that one, and how many objects of the archive are decided there."""
    if record.parent is None:
        return None
    return {"run_id": record.parent.run_id, "objects": record.manifest.already}


def _id(spec: DecideSpec, record: RunRecord, held_out: Mapping[str, HeldOutScores]) -> str:
    deciding: dict[str, Any] = {
        "rule": spec.rule(),
        "level": spec.level,
        "run": [record.run_id, record.digest],
        "held_out": {model_id: [held.calibration_id, held.sha256] for model_id, held in held_out.items()},
    }
    # Decisions of earlier versions keep their names.
    if spec.by:
        deciding["by"] = list(spec.by)
    if spec.level != "image":
        deciding["stacks"] = STACKS_VERSION
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]
