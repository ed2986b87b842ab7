"""A run's life on disk: begun (`run.pending.json`), closed (`run.json`); may it be continued?

While a process writes there, it holds the folder's `run.lock`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from pyarrow import fs
from pydantic import BaseModel, ValidationError

from ad_jobs.archive.manifest import read_parts
from ad_jobs.archive.marks import rows_of
from ad_jobs.errors import JobError, UsageError
from ad_jobs.results.parts import part_uris
from ad_jobs.results.run import (
    RUN_FILE,
    Counts,
    ManifestRef,
    RunRecord,
    machine,
    read_record,
    versions,
    write_calibration_copy,
    write_record,
)
from ad_jobs.scanning import chapters
from ad_jobs.scanning.intent import CHECKPOINT, MANIFEST_FOLDER, Intent, folder_in_use
from cluster import storage
from cluster.counting import counted
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
        if intent.selection is not None:
            table = rows_of(table, intent.selection.ids)
        found.update(undecodable(table["transfer_syntax"]))
    for syntax, count in found.items():
        log.warning("%s of transfer syntax %s will fail: no decoder here.", counted(count, "object"), syntax)


@contextmanager
def writing(intent: Intent) -> Iterator[lease.Lease]:
    """The output folder for this process alone, for the length of the block.

    Raises:
        UsageError: another scan writes there, or the folder cannot be written.
    """
    try:
        with _lease(intent) as held:
            yield held
    except lease.Held as error:
        raise UsageError(
            "One scan at a time writes to a folder.",
            f"{intent.spec.out}, which {error.holder} is writing to",
            "Wait for it, end it, or name another --out. A scan that has died is found out by itself.",
        ) from error


def _lease(intent: Intent) -> AbstractContextManager[lease.Lease]:
    return lease.lease(storage.join(intent.spec.out, LOCK_FILE))


def finished(intent: Intent) -> RunRecord | None:
    """The record of this very run if it is closed; None otherwise.

    What only an unfinished run needs is then removed, unless another process is about to.

    Raises:
        UsageError: as `look`.
    """
    record = look(intent)
    if record is not None and _untidy(intent):
        with suppress(lease.Held), _lease(intent):
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
            if not name.startswith((f"{MANIFEST_FOLDER}/", LOCK_FILE)) and not storage.is_temporary(name)
        ]
    except storage.NotFound:
        return None
    except storage.StorageError as error:
        raise _unwritable(error) from error
    if RUN_FILE in names and (record := _closed(intent.spec.out, PENDING_FILE in names)) is not None:
        if record.run_id != intent.run_id:
            raise folder_in_use(intent.spec.out, f"the finished run {record.run_id}")
        return record
    if PENDING_FILE in names:
        begun = _begun(intent.spec.out, names)
        if begun not in (None, intent.run_id):
            raise folder_in_use(intent.spec.out, f"the unfinished run {begun}")
    elif names:
        raise folder_in_use(intent.spec.out, f"{len(names)} other files, such as {names[0]}")
    return None


def _closed(out: str, begun: bool) -> RunRecord | None:
    """The record of the run in `out`; None if it is not whole, as its process was killed while it wrote it.

    Raises:
        UsageError: a record that cannot be read in a folder where no run is under way.
    """
    try:
        return read_record(out)
    except UsageError as error:
        if not begun:
            raise
        log.warning("%s Written again.", error)
        return None


def _begun(out: str, names: list[str]) -> str | None:
    """The id of the run that has begun in a folder.

    Where its marker is not whole, the folder of its chapters and its parts say so; None if there are none yet.
    """
    if (marker := _marker(out)) is not None:
        return marker.run_id
    log.warning("%s in %s is not whole: written again.", PENDING_FILE, out)
    for name in names:
        if found := re.fullmatch(f"{CHECKPOINT}([0-9a-f]+)/.*", name):
            return found[1]
    for uri in part_uris(out):
        rows = chapters.read_whole(uri, ["run_id"])
        if rows is not None and rows.num_rows:
            return str(rows["run_id"][0].as_py())
    return None


class _Marker(BaseModel):
    """The content of run.pending.json."""

    run_id: str
    started_at: datetime
    config: dict[str, Any]
    # What has scored so far, of all the scan's starts.
    engines: list[str] = []


def _marker(out: str) -> _Marker | None:
    """What `begin` wrote; None if it is not there, or not whole."""
    try:
        return _Marker.model_validate_json(storage.read_bytes(storage.join(out, PENDING_FILE)))
    except (storage.NotFound, ValidationError):
        return None


def _write_marker(out: str, marker: _Marker) -> None:
    storage.write_bytes(storage.join(out, PENDING_FILE), (marker.model_dump_json(indent=2) + "\n").encode())


def _unwritable(error: storage.StorageError) -> UsageError:
    return UsageError(
        "--out must be a folder that this user may list and write.",
        str(error),
        "Name another, or check its permissions; for s3:// check the AWS variables and the bucket's policy.",
    )


def begin(intent: Intent) -> None:
    """Mark the folder as this run's; the marker of an earlier start stays as it is.

    What a killed process was writing is removed.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        _drop_temporaries(intent.spec.out)
        if _marker(intent.spec.out) is None:
            if intent.manifest.headers:
                _warn_of_undecodable(intent)
            marker = _Marker(run_id=intent.run_id, started_at=datetime.now(UTC), config=_config(intent))
            _write_marker(intent.spec.out, marker)
        for model, (body, held_out) in zip(intent.models, intent.calibrations, strict=True):
            write_calibration_copy(intent.spec.out, model.model_id, body, held_out)
    except storage.StorageError as error:
        raise _unwritable(error) from error


def note_engines(out: str, noted: frozenset[str], engines: Iterable[str]) -> frozenset[str]:
    """Keep what scored a part of the run in `out` for its record, beside what an earlier start has noted.

    All that is `noted` by now.
    """
    if noted.issuperset(engines):
        return noted
    if (marker := _marker(out)) is not None:
        _write_marker(out, marker.model_copy(update={"engines": sorted({*engines, *marker.engines})}))
    # Without a marker the run cannot be closed, which says so.
    return noted.union(engines)


def close(intent: Intent, key: bytes | None = None) -> RunRecord:
    """Write run.json from the committed chapters, after which the run is finished; with `key` it is signed.

    Raises:
        JobError: storage failed; the run stays unfinished.
    """
    shown = intent.identifiers.uri
    try:
        marker = _marker(intent.spec.out)
        if marker is None:
            raise JobError(f"{PENDING_FILE} in {intent.spec.out} was removed.", "Run the same command again.")
        done = [chapter for _, chapter in sorted(chapters.committed(intent.checkpoint, intent.spec.out).items())]
        counts = _sum([chapter.counts for chapter in done])
        if len(done) != intent.chapters or counts.objects != intent.objects:
            raise JobError(
                f"{len(done)} of {counted(intent.chapters, 'chapter')} with {counts.objects} of "
                f"{counted(intent.objects, 'object')} are committed.",
                "Run the same command again.",
            )
        record = RunRecord(
            run_id=intent.run_id,
            started_at=marker.started_at,
            ended_at=datetime.now(UTC),
            source=shown(intent.spec.source),
            manifest=ManifestRef(
                uri=shown(intent.manifest.uri),
                digest=intent.manifest.digest,
                objects=intent.objects,
                where=None if intent.spec.where is None else shown(intent.spec.where),
                listed=intent.manifest.objects,
                undecided=intent.undecided,
                already=intent.already,
                fingerprint=intent.manifest.fingerprint,
            ),
            parent=intent.parent,
            models=list(intent.models),
            config=_config(intent),
            chapter_objects=intent.spec.chapter_objects,
            versions=versions(),
            machine=machine(),
            engines=marker.engines,
            counts=counts,
            parts=[part for chapter in done for part in chapter.parts],
            heatmap_parts=[part for chapter in done for part in chapter.heatmap_parts],
        )
        record = write_record(intent.spec.out, record, key)
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


def _untidy(intent: Intent) -> bool:
    return any(
        name.startswith((LOCK_FILE, PENDING_FILE, CHECKPOINT)) or storage.is_temporary(name)
        for name in storage.list_names(intent.spec.out)
    )


def _tidy(intent: Intent) -> None:
    """Remove what only an unfinished run needs."""
    filesystem, checkpoint = storage.filesystem(intent.checkpoint)
    if filesystem.get_file_info(checkpoint).type != fs.FileType.NotFound:
        filesystem.delete_dir(checkpoint)
    _drop_temporaries(intent.spec.out)
    storage.delete(storage.join(intent.spec.out, PENDING_FILE))


def _drop_temporaries(out: str) -> None:
    for name in storage.list_names(out):
        if storage.is_temporary(name):
            storage.delete(storage.join(out, name))
