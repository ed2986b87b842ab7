"""A run and those it was made since: each knows its parent by its place, its id, and the sha256 of its run.json."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from ad_jobs.errors import UsageError
from ad_jobs.results.run import RUN_FILE, ParentRef, RunRecord, read_record
from ad_jobs.results.seal import digest_holds
from cluster import storage


class ParentGone(UsageError):
    """A run that others were made since, or what it was made of, is not where it was."""


class Ancestor(NamedTuple):
    """A finished run: where it lies, what its run.json says, and that file's sha256."""

    uri: str
    record: RunRecord
    sha256: str


def lineage(run_uri: str) -> list[Ancestor]:
    """A run, its parent, that one's parent, and so on: newest first.

    Raises:
        ParentGone: one of the parents is not where it was.
        UsageError: one is unfinished or no run, its run.json was changed, or it is another run by now.
    """
    found = [read_ancestor(run_uri)]
    while (parent := found[-1].record.parent) is not None:
        found.append(read_parent(found[-1].uri, parent))
    return found


def read_ancestor(run_uri: str) -> Ancestor:
    """A finished run whose run.json is as it was written.

    Raises:
        UsageError: it is not.
    """
    record = read_record(run_uri)
    content = storage.read_bytes(storage.join(run_uri, RUN_FILE))
    # Version 1 had no digest.
    if (record.version > 1 or record.digest is not None) and not digest_holds(json.loads(content)):
        raise UsageError(
            "run.json must be as it was written (its digest tells).", run_uri, "See verify; restore it, or scan again."
        )
    return Ancestor(run_uri, record, hashlib.sha256(content).hexdigest())


def read_parent(run_uri: str, parent: ParentRef) -> Ancestor:
    """The run that another was made since.

    Raises:
        ParentGone: it is not where it was.
        UsageError: it is another run by now.
    """
    if not storage.exists(storage.join(parent.uri, RUN_FILE)):
        raise ParentGone(
            "A run that was made since another is read with that one.",
            f"{run_uri}, whose parent {parent.uri} is not there",
            "Restore it where it was.",
        )
    found = read_ancestor(parent.uri)
    if (found.sha256, found.record.run_id) != (parent.sha256, parent.run_id):
        raise UsageError(
            "A run's parent stays as it was.",
            f"{parent.uri}, run {found.record.run_id}; {run_uri} was made since {parent.run_id}, sha256 "
            f"{parent.sha256[:12]}…, and its run.json has {found.sha256[:12]}…",
            "Restore the parent where it was.",
        )
    return found
