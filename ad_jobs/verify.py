"""`retroscan verify`: is the run what its record says, and does a sample of it come out the same again?

Everything that run.json vouches for is checked against what lies in storage; then objects are fetched,
hashed, decoded and scored once more. What differs is listed, never repaired.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from ad_jobs.errors import JobError, RetroscanError
from ad_jobs.results.read import read_run
from ad_jobs.results.run import RunRecord
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.results.seal import Signature, signing_key
from ad_jobs.run_specs import VerifySpec
from ad_jobs.scoring.tolerances import AMP_TOLERANCE, SCORE_TOLERANCE
from ad_jobs.specs import takes
from ad_jobs.verifying import files, table
from ad_jobs.verifying.record import Judge, check_config, check_model, check_run_id, check_seal
from ad_jobs.verifying.run_archive import RunArchive
from ad_jobs.verifying.sample import Sampled, check_sample, choose
from ad_jobs.verifying.whole import DecodedWhole
from cluster import storage
from cluster.counting import counted

MAX_LISTED = 20


class Verification(NamedTuple):
    """What was checked, how much of it, and every difference found."""

    run_id: str
    parts: int
    heatmap_parts: int
    # Objects that were fetched again, and how many of them decoded and were scored again.
    sampled: int
    scored: int
    # By how much a score may differ: AMP_TOLERANCE for a run of `scan --amp`.
    tolerance: float
    # Who wrote run.json, as far as the key tells.
    signature: Signature
    # False where the files of the table are not those of the run: then neither rows nor a sample are looked at.
    rows_checked: bool
    # False where names are hashed, and their key was not given.
    names_checked: bool
    # False where a run was made since another, and that or its manifest is gone: what it has was not looked at.
    parent_checked: bool
    differences: list[str]
    # With `full`, of each model: what decoding the sample's frames whole would change. It is no difference.
    whole: list[DecodedWhole]

    @property
    def ok(self) -> bool:
        """True if nothing differs."""
        return not self.differences

    def raise_if_different(self) -> None:
        """Raise JobError that lists the differences."""
        if self.differences:
            more = len(self.differences) - MAX_LISTED
            listed = "\n  ".join(self.differences[:MAX_LISTED] + ([f"and {more} more"] if more > 0 else []))
            if not self.rows_checked:
                listed += "\nRows and a sample were not looked at: the files of the table are not those of the run."
            raise JobError(f"The run differs from its record in {counted(len(self.differences), 'place')}:\n  {listed}")


@takes(VerifySpec)
def verify(spec: VerifySpec) -> Verification:
    """What differs between a finished run and its record, and between its rows and `sample` objects scored again.

    Raises:
        UsageError: not a run, or an unfinished one; a manifest or a key that was named and is none.
    """
    run_uri = spec.run
    key = signing_key(spec.key)
    record = read_run(run_uri)
    signature, differences = check_seal(run_uri, record, key)
    differences += check_config(record)
    broken = files.check_score_parts(run_uri, record)
    marks, wrong = files.check_heatmap_parts(run_uri, record)
    differences += broken + wrong
    judges: list[Judge] = []
    for recorded in record.models:
        judge, wrong = check_model(run_uri, recorded, kept=record.version > 1)
        differences += wrong
        judges += [judge] if judge is not None else []
    archive, missing = _archive(spec, record)
    differences += missing
    if archive is not None:
        differences += archive.check() + check_run_id(record, archive)
    sampled = Sampled(0, 0, [], [])
    # A damaged table cannot be counted, and what it says of an object is worth nothing.
    if not broken:
        rows = ScoreTable(run_uri, record)
        with ExitStack() as copied:
            try:
                copy = copied.enter_context(rows.copied(table.COLUMNS))
            except JobError as error:
                broken = files.check_footers(run_uri, record) or [str(error)]
                differences += broken
            else:
                differences += table.check_rows(copy, archive, marks)
                if archive is not None:
                    differences += table.check_counts(copy, archive)
                if judges and archive is not None:
                    drawn = choose(copy, archive.manifest.objects, spec.sample, spec.seed)
                    sampled = check_sample(run_uri, record, archive, judges, drawn, full=spec.full)
                    differences += sampled.differences
    parent_gone, missing = _parent_gone(archive)
    differences += missing
    return Verification(
        record.run_id,
        len(record.parts),
        len(record.heatmap_parts),
        sampled.fetched,
        sampled.scored,
        AMP_TOLERANCE if record.config.get("amp") else SCORE_TOLERANCE,
        signature,
        not broken,
        archive is not None and archive.identifiers is not None,
        archive is not None and parent_gone is None,
        differences,
        sampled.whole,
    )


def _parent_gone(archive: RunArchive | None) -> tuple[str | None, list[str]]:
    try:
        return None if archive is None else archive.parent_gone, []
    except (RetroscanError, storage.StorageError) as error:
        return str(error), [f"parent: {error}"]


def _archive(spec: VerifySpec, record: RunRecord) -> tuple[RunArchive | None, list[str]]:
    """What the run was made of; None, and why, where that is not found."""
    try:
        return RunArchive(spec.run, record, spec.manifest, spec.identifiers_key), []
    except (RetroscanError, storage.StorageError) as error:
        # What was named is the caller's; what the run left, and is gone, is a difference like any other.
        misused = spec.identifiers_key is not None and record.config.get("identifiers") != "hashed"
        if spec.manifest is not None or misused:
            raise
        return None, [f"manifest: {error}"]
