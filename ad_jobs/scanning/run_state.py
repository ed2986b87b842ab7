"""A run's life on disk: begun (`run.pending.json`), closed (`run.json`); may it be continued?

While a process writes there, it holds the folder's `run.lock`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from ad_jobs.archive.manifest import read_parts
from ad_jobs.errors import JobError, UsageError
from ad_jobs.results.run import Counts, ManifestRef, RunRecord, machine, read_record, versions, write_record
from ad_jobs.scanning import chapters
from ad_jobs.scanning.intent import MANIFEST_FOLDER, Intent, folder_in_use
from cluster import storage
from cluster.storage import lease

log = logging.getLogger("retroscan.scan")

PENDING_FILE = "run.pending.json"
LOCK_FILE = "run.lock"


def undecodable(syntaxes: pa.ChunkedArray) -> dict[str, int]:
    """How many objects have a transfer syntax that no installed decoder reads, by its UID."""
    from ad_jobs.images.dicom import decodable

    counts = syntaxes.drop_null().value_counts().to_pylist()
    return {row["values"]: row["counts"] for row in counts if not decodable(row["values"])}


def _warn_of_undecodable(intent: Intent) -> None:
    found: Counter[str] = Counter()
    for table in read_parts(intent.manifest, ["object_id", "transfer_syntax"]):
        if intent.selected is not None:
            table = table.filter(pa.array(np.isin(table["object_id"].to_numpy(), intent.selected)))
        found.update(undecodable(table["transfer_syntax"]))
    for syntax, count in found.items():
        log.warning("%d objects have transfer syntax %s: no decoder here, they will fail.", count, syntax)


@contextmanager
def writing(intent: Intent) -> Iterator[lease.Lease]:
    """The output folder for this process alone, for the length of the block.

    Raises:
        UsageError: another scan writes there, or the folder cannot be written.
    """
    try:
        with lease.lease(storage.join(intent.spec.out, LOCK_FILE)) as held:
            yield held
    except lease.Held as error:
        raise UsageError(
            "One scan at a time writes to a folder.",
            f"{intent.spec.out}, which {error.holder} is writing to",
            "Wait for it, end it, or name another --out. A scan that has died is found out by itself.",
        ) from error


def finished(intent: Intent) -> RunRecord | None:
    """The record of this very run if it is closed, what only an unfinished one needs removed; None otherwise.

    Raises:
        UsageError: as `look`.
    """
    record = look(intent)
    if record is not None:
        _tidy(intent)
    return record


def look(intent: Intent) -> RunRecord | None:
    """The record of this very run if it is closed; None if it is to be begun or continued. Nothing is written.

    Raises:
        UsageError: the folder holds another run, or something else.
    """
    try:
        # A call that ends here before `begin` has left at most the manifest.
        names = [
            name
            for name in storage.list_names(intent.spec.out)
            if not name.startswith((f"{MANIFEST_FOLDER}/", LOCK_FILE))
        ]
    except storage.NotFound:
        return None
    except storage.StorageError as error:
        raise _unwritable(error) from error
    if "run.json" in names:
        record = read_record(intent.spec.out)
        if record.run_id != intent.run_id:
            raise folder_in_use(intent.spec.out, f"the finished run {record.run_id}")
        return record
    if PENDING_FILE in names:
        pending = json.loads(storage.read_bytes(storage.join(intent.spec.out, PENDING_FILE)))
        if pending["run_id"] != intent.run_id:
            raise folder_in_use(intent.spec.out, f"the unfinished run {pending['run_id']}")
    elif names:
        raise folder_in_use(intent.spec.out, f"{len(names)} other files, such as {names[0]}")
    return None


def _unwritable(error: storage.StorageError) -> UsageError:
    return UsageError(
        "--out must be a folder that this user may list and write.",
        str(error),
        "Name another, or check its permissions; for s3:// check the AWS variables and the bucket's policy.",
    )


def begin(intent: Intent) -> None:
    """Mark the folder as this run's; the marker of an earlier start stays as it is.

    Raises:
        UsageError: the folder cannot be written.
    """
    marker = storage.join(intent.spec.out, PENDING_FILE)
    try:
        if storage.exists(marker):
            return
        if intent.manifest.headers:
            _warn_of_undecodable(intent)
        content = {"run_id": intent.run_id, "started_at": datetime.now(UTC).isoformat(), "config": _config(intent)}
        storage.write_bytes(marker, (json.dumps(content, indent=2) + "\n").encode())
    except storage.StorageError as error:
        raise _unwritable(error) from error


def close(intent: Intent) -> RunRecord:
    """Write run.json from the committed chapters, after which the run is finished.

    Raises:
        JobError: storage failed; the run stays unfinished.
    """
    marker, shown = storage.join(intent.spec.out, PENDING_FILE), intent.identifiers.uri
    try:
        pending = json.loads(storage.read_bytes(marker))
        done = [chapter for _, chapter in sorted(chapters.committed(intent.checkpoint).items())]
        counts = _sum([chapter.counts for chapter in done])
        if len(done) != intent.chapters or counts.objects != intent.objects:
            raise JobError(
                f"{len(done)} of {intent.chapters} chapters with {counts.objects} of {intent.objects} objects "
                "are committed.",
                "Run the same command again.",
            )
        record = RunRecord(
            run_id=intent.run_id,
            started_at=datetime.fromisoformat(pending["started_at"]),
            ended_at=datetime.now(UTC),
            source=shown(intent.spec.source),
            manifest=ManifestRef(
                uri=shown(intent.manifest.uri),
                digest=intent.manifest.digest,
                objects=intent.objects,
                where=None if intent.spec.where is None else shown(intent.spec.where),
            ),
            models=list(intent.models),
            config=_config(intent),
            versions=versions(),
            machine=machine(),
            counts=counts,
            parts=[part for chapter in done for part in chapter.parts],
            heatmap_parts=[part for chapter in done for part in chapter.heatmap_parts],
        )
        write_record(intent.spec.out, record)
        _tidy(intent)
    except (storage.StorageError, OSError) as error:
        # OSError is pyarrow's word for it.
        raise JobError(
            f"The run could not be closed: {error}.", "Run the same command again: nothing is scored twice."
        ) from error
    return record


def _config(intent: Intent) -> dict[str, Any]:
    """The request with what followed from its models: as `--config` it gives this run again."""
    return {**intent.identifiers.config(intent.spec.config()), "limits": intent.limits.model_dump(mode="json")}


def _sum(counts: list[Counts]) -> Counts:
    codes: Counter[str] = Counter()
    for one in counts:
        codes.update(one.by_code)
    names = [name for name in Counts.model_fields if name != "by_code"]
    return Counts(**{name: sum(getattr(one, name) for one in counts) for name in names}, by_code=dict(codes))


def _tidy(intent: Intent) -> None:
    """Remove what only an unfinished run needs."""
    filesystem, checkpoint = storage.filesystem(intent.checkpoint)
    if filesystem.get_file_info(checkpoint).type != fs.FileType.NotFound:
        filesystem.delete_dir(checkpoint)
    storage.delete(storage.join(intent.spec.out, PENDING_FILE))
