"""The archive that a finished run was made of: its manifest, and what the run's names stand for."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ad_jobs.archive.fetching import Prepared, Source
from ad_jobs.archive.identifiers import Identifiers, is_hashed, manifest_beside, read_identifiers
from ad_jobs.archive.manifest import RowReader, Selection, read_parts, row_bytes, select
from ad_jobs.archive.manifest_record import ManifestInfo, manifest_info
from ad_jobs.errors import RetroscanError, UsageError
from ad_jobs.images.domain import check_accept
from ad_jobs.results.lineage import ParentGone, lineage, read_parent
from ad_jobs.results.run import ParentRef, RunRecord
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.scanning.since import Had, manifest_of, select_since
from ad_jobs.schema import HEADER, MANIFEST, SCORED, UIDS
from cluster import storage

# The place of the URI in a manifest's row.
_URI = MANIFEST.names.index("uri")
_BATCH_ROWS = 65_536


class RunArchive:
    """The objects of a run by their ids, and the names that the run must have for them.

    Args:
        run_uri: the run.
        record: what its run.json says.
        manifest: where its manifest lies now; by default where the run left it.
        key: the file with the key of its hashed identifiers, if it has any and they are to be checked.

    Raises:
        UsageError: the manifest is not there, or is another one; a key for a run without hashes.
    """

    def __init__(self, run_uri: str, record: RunRecord, manifest: str | None = None, key: Path | None = None) -> None:
        self._run_uri = run_uri
        self._record = record
        self.hashed = record.config.get("identifiers") == "hashed"
        if key is not None and not self.hashed:
            raise UsageError("--identifiers-key is for a run with hashed identifiers.", key, "Leave it out.")
        # Without the key nobody can say what an object must be called.
        self.identifiers: Identifiers | None = Identifiers(record.config.get("identifiers", "plain"))
        if self.hashed:
            self.identifiers = read_identifiers("hashed", key) if key is not None else None
        recorded = record.manifest.uri
        self.manifest: ManifestInfo = _found(
            manifest or (manifest_beside(run_uri) if is_hashed(recorded) else recorded)
        )
        if self.manifest.digest != record.manifest.digest:
            raise UsageError(
                "A run is checked against the manifest that it was made from.",
                f"{self.manifest.uri} with digest {self.manifest.digest}; the run has {record.manifest.digest}",
                "Name that one with --manifest.",
            )
        # One for all: it keeps the part that it has read last.
        self._rows = RowReader(self.manifest)

    def selection(self) -> Selection | None:
        """The objects that were to be scanned; None where they are all of the manifest's.

        What hangs on a hashed condition, or on a parent that is gone, is what the record and the table say.

        Raises:
            UsageError: the run's condition is no longer one; a parent is unfinished, or another run by now.
            JobError: a parent is damaged.
        """
        where, parent = self._record.manifest.where, self._record.parent
        if where is None and parent is None:
            return None
        if is_hashed(where) or self.parent_gone is not None:
            return self._in_the_table()
        selection = None if where is None else select(self.manifest, where)
        if parent is None:
            return selection
        models = [model.model_id for model in self._record.models]
        accept = accepted(self._record) or ()
        return select_since(self.manifest, selection, self._had(parent), models, parent.retry, accept)

    @cached_property
    def parent_gone(self) -> str | None:
        """Why what the run's parents have cannot be read; None where it can, or there are none.

        Raises:
            UsageError: a parent is unfinished, or another run by now.
        """
        if self._record.parent is None:
            return None
        try:
            self._had(self._record.parent)
        except ParentGone as error:
            return str(error)
        return None

    def _had(self, parent: ParentRef) -> list[Had]:
        read_parent(self._run_uri, parent)
        return [Had(run, manifest_of(run.uri, run.record)) for run in lineage(parent.uri)]

    def _in_the_table(self) -> Selection:
        """What was selected stands in the table, if it is as many as there were."""
        present = np.zeros(self.manifest.objects, bool)
        for batch in ScoreTable(self._run_uri, self._record).batches(["object_id"]):
            ids = batch["object_id"].to_numpy()
            present[ids[(ids >= 0) & (ids < len(present))]] = True
        manifest, parent = self._record.manifest, self._record.parent
        again = (0, 0) if parent is None else (parent.retried, parent.widened)
        return Selection(np.flatnonzero(present), manifest.undecided or 0, manifest.already, *again)

    def names(self, ids: NDArray[np.int64]) -> list[str | None] | None:
        """What the run must call these objects, None for each that the manifest does not have.

        None where that is not to be known: names are hashed, and their key was not given.
        """
        if self.identifiers is None:
            return None
        known, places = np.unique(ids, return_inverse=True)
        held = {source.object_id: self.identifiers.uri(source.uri) for source in self.sources(known)}
        names = [held.get(int(i)) for i in known]
        return [names[place] for place in places]

    def check(self) -> list[str]:
        """How the manifest differs from what it says of itself: its ids, their order, its digest."""
        digest = hashlib.sha256()
        differences = []
        if self._record.manifest.fingerprint not in (None, self.manifest.fingerprint):
            differences.append(f"manifest {self.manifest.uri}: its manifest.json is not the one of the run")
        count, last = 0, ""
        try:
            for table in read_parts(self.manifest):
                if not np.array_equal(table["object_id"].to_numpy(), np.arange(count, count + table.num_rows)):
                    differences.append(f"manifest {self.manifest.uri}: its ids are not 0, 1, 2 and so on")
                for batch in table.to_batches(_BATCH_ROWS):
                    rows = [tuple(row.values()) for row in batch.to_pylist()]
                    digest.update(b"".join(map(row_bytes, rows)))
                    uris = [last, *(row[_URI] for row in rows)]
                    # A list has its own order.
                    if self.manifest.root is not None and any(b <= a for a, b in itertools.pairwise(uris)):
                        differences.append(
                            f"manifest {self.manifest.uri}: its objects are not in the order of their URIs"
                        )
                    last = uris[-1]
                count += table.num_rows
        except (RetroscanError, storage.StorageError) as error:
            return [*differences, f"manifest {self.manifest.uri}: {error}"]
        if digest.hexdigest() != self.manifest.digest:
            differences.append(f"manifest {self.manifest.uri}: its rows give another digest than the one it records")
        return differences

    def sources(self, ids: Iterable[int]) -> list[Source]:
        """Where the objects lie that the manifest has of these."""
        known = np.array(sorted(i for i in ids if 0 <= i < self.manifest.objects), np.int64)
        if not len(known):
            return []
        rows = self._rows.rows(known, ["object_id", "uri", "etag"]).to_pylist()
        return [Source(**row, within=self.manifest.root) for row in rows]

    def wrong_names(self, row: Mapping[str, Any] | pd.Series[Any], prepared: Prepared) -> list[str]:
        """What of the names in a row is not the object's; nothing where hashes are to be checked without their key."""
        if self.identifiers is None:
            return []
        wanted = {"uri": self.identifiers.uri(prepared.source.uri)}
        for name in UIDS if has_header(row) else ():
            uid = prepared.header.get(name)
            wanted[name] = self.identifiers.uid(None if uid is None else str(uid)) or ""
        of_whom = "the object's under this key" if self.hashed else "the object's"
        return [f"{name} is not {of_whom}" for name, value in wanted.items() if _text(row[name]) != value]


def accepted(record: RunRecord) -> tuple[str, ...] | None:
    """What the run scored although no fit saw the like of it; None where its record says what nobody can have asked."""
    try:
        return check_accept(record.config.get("accept", ()))
    except (UsageError, TypeError, AttributeError):
        return None


def has_header(row: Mapping[Any, Any] | pd.Series[Any]) -> bool:
    """Whether a row must have its object's header: earlier versions wrote none of it where the object failed."""
    return bool(row["status"] == SCORED) or any(pd.notna(row[name]) for name in HEADER.names)


def _text(value: Any) -> str:
    # pandas has several ways of saying that there is none.
    return value if isinstance(value, str) else ""


def _found(manifest: str) -> ManifestInfo:
    try:
        return manifest_info(manifest)
    except UsageError as error:
        raise UsageError(
            "A run is checked by its manifest.", error.value, "Name the one that it was made from with --manifest."
        ) from error
