"""A run's life on disk: intended, begun (`run.pending.json`), closed (`run.json`); may it be continued?

The run id follows from everything that decides the table, so the same command finds its own run again and
another command is refused. While a process writes there, it holds the folder's `run.lock`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from ad_jobs.archive.manifest import ManifestInfo, RowReader, find_manifest, read_manifest, read_parts, refusal
from ad_jobs.archive.sources import source_uri
from ad_jobs.errors import JobError, UsageError
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.index import index
from ad_jobs.results.heatmaps import KeepPolicy
from ad_jobs.results.run import Counts, ManifestRef, ModelRef, RunRecord, machine, read_record, versions, write_record
from ad_jobs.scanning import chapters
from ad_jobs.scanning.chapters import CHAPTER_OBJECTS
from ad_jobs.scanning.stages import Identifiers, Judgement, ModelUse
from ad_jobs.schema import SCORES_VERSION
from ad_jobs.scoring.model_store import CalibratedModel
from cluster import storage
from cluster.storage import lease

log = logging.getLogger("retroscan.scan")

PENDING_FILE = "run.pending.json"
LOCK_FILE = "run.lock"
MANIFEST_FOLDER = "manifest"


@dataclass(frozen=True)
class Plan:
    """A run, resolved: what is to be scanned with what, how it is judged, and where it goes."""

    run_id: str
    source: str
    out: str
    manifest: ManifestInfo
    where: str | None
    selected: NDArray[np.int64] | None  # ids of the objects that `where` selects, ascending; None without it
    models: tuple[ModelRef, ...]
    uses: tuple[ModelUse, ...]  # of each model
    policies: tuple[PixelPolicy, ...]  # the different ones among the models
    limits: Limits
    identifiers: Identifiers
    amp: bool  # whether scores are computed in reduced precision
    config: dict[str, Any]

    @property
    def checkpoint(self) -> str:
        """The folder of the committed chapters, while the run is not closed."""
        return storage.join(self.out, f"checkpoint-{self.run_id}")

    @property
    def objects(self) -> int:
        """How many objects are to be scanned."""
        return self.manifest.objects if self.selected is None else len(self.selected)

    @property
    def chapters(self) -> int:
        """In how many chapters."""
        return -(-self.objects // CHAPTER_OBJECTS)

    def ids(self, chapter: int) -> NDArray[np.int64]:
        """The ids of a chapter's objects, ascending."""
        first, end = chapter * CHAPTER_OBJECTS, min(self.objects, (chapter + 1) * CHAPTER_OBJECTS)
        return np.arange(first, end) if self.selected is None else self.selected[first:end]


def intend(
    source: str,
    out: str,
    models: list[CalibratedModel],
    *,
    where: str | None,
    heatmaps: KeepPolicy,
    limits: Limits,
    identifiers: Identifiers,
    config: dict[str, Any],
    amp: bool = False,
    index_to: str | None = None,
) -> Plan:
    """The resolved run; a SOURCE that is no manifest is indexed, if `out`/manifest does not have it yet.

    The index goes to `out`/manifest, or to the folder `index_to`.

    Raises:
        UsageError: a source, selection or output folder that cannot be used as given.
    """
    source, out = source_uri(source), source_uri(out)
    try:
        manifest = _manifest(source, out, index_to)
        selected = None
        if where is not None:
            selected = read_manifest(manifest.uri, columns=["object_id"], where=where)["object_id"].to_numpy()
        first = np.zeros(1, np.int64) if selected is None else selected[:1]
        _probe(RowReader(manifest).rows(first, ["uri"])["uri"][0].as_py())
    except storage.StorageError as error:
        raise refusal(error) from error
    policies = tuple(dict.fromkeys(model.policy for model in models))
    references = tuple(_reference(model) for model in models)
    deciding = {
        "version": SCORES_VERSION,
        "manifest": manifest.digest,
        "where": where,
        "models": [[reference.model_id, reference.calibration_sha256] for reference in references],
        "heatmaps": heatmaps,
        "limits": limits.model_dump(mode="json"),
        "identifiers": [identifiers.mode, hashlib.sha256(b"retroscan key" + identifiers.key).hexdigest()],
        **({"amp": True} if amp else {}),
    }
    return Plan(
        run_id=hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12],
        source=source,
        out=out,
        manifest=manifest,
        where=where,
        selected=selected,
        models=references,
        uses=tuple(
            ModelUse(
                Judgement(ref.model_id, ref.threshold, ref.heatmap_low, ref.heatmap_high, heatmaps),
                policies.index(model.policy),
            )
            for ref, model in zip(references, models, strict=True)
        ),
        policies=policies,
        limits=limits,
        identifiers=identifiers,
        amp=amp,
        config={
            **config,
            "where": where,
            "heatmaps": heatmaps,
            "identifiers": identifiers.mode,
            "amp": amp,
            "limits": deciding["limits"],
        },
    )


def _reference(model: CalibratedModel) -> ModelRef:
    calibration = model.calibration
    return ModelRef(
        model_id=model.model_id,
        uri=model.uri,
        kind=model.kind,
        threshold=calibration.threshold,
        calibration_sha256=model.calibration_sha256,
        weights_sha256=str(model.record["weights_sha256"]),
        policy=model.policy.model_dump(mode="json"),
        heatmap_low=calibration.heatmap_low,
        heatmap_high=calibration.heatmap_high,
    )


def _manifest(source: str, out: str, index_to: str | None) -> ManifestInfo:
    if (given := find_manifest(source)) is not None:
        return given
    below = storage.join(out, MANIFEST_FOLDER)
    if (stored := find_manifest(below)) is None:
        return index(source, index_to or below)
    # Listed once: what a resumed run works on is the archive as it was when the run began.
    if stored.source != source:
        _refuse(out, f"a scan of {stored.source}")
    return stored


def _probe(uri: str) -> None:
    """Raise StorageError if the store refuses or does not answer: one message, not a table of failures."""
    if storage.is_s3(uri):
        storage.exists(uri)


def undecodable(syntaxes: pa.ChunkedArray) -> dict[str, int]:
    """How many objects have a transfer syntax that no installed decoder reads, by its UID."""
    from ad_jobs.images.dicom import decodable

    counts = syntaxes.drop_null().value_counts().to_pylist()
    return {row["values"]: row["counts"] for row in counts if not decodable(row["values"])}


def _warn_of_undecodable(plan: Plan) -> None:
    found: Counter[str] = Counter()
    for table in read_parts(plan.manifest, ["object_id", "transfer_syntax"]):
        if plan.selected is not None:
            table = table.filter(pa.array(np.isin(table["object_id"].to_numpy(), plan.selected)))
        found.update(undecodable(table["transfer_syntax"]))
    for syntax, count in found.items():
        log.warning("%d objects have transfer syntax %s: no decoder here, they will fail.", count, syntax)


@contextmanager
def writing(plan: Plan) -> Iterator[lease.Lease]:
    """The output folder for this process alone, for the length of the block.

    Raises:
        UsageError: another scan writes there, or the folder cannot be written.
    """
    try:
        with lease.lease(storage.join(plan.out, LOCK_FILE)) as held:
            yield held
    except lease.Held as error:
        raise UsageError(
            "One scan at a time writes to a folder.",
            f"{plan.out}, which {error.holder} is writing to",
            "Wait for it, end it, or name another --out. A scan that has died is found out by itself.",
        ) from error


def finished(plan: Plan) -> RunRecord | None:
    """The record of this very run if it is closed, what only an unfinished one needs removed; None otherwise.

    Raises:
        UsageError: as `look`.
    """
    record = look(plan)
    if record is not None:
        _tidy(plan)
    return record


def look(plan: Plan) -> RunRecord | None:
    """The record of this very run if it is closed; None if it is to be begun or continued. Nothing is written.

    Raises:
        UsageError: the folder holds another run, or something else.
    """
    try:
        # A call that ends here before `begin` has left at most the manifest.
        names = [
            name
            for name in storage.list_names(plan.out)
            if not name.startswith(f"{MANIFEST_FOLDER}/") and name != LOCK_FILE
        ]
    except storage.NotFound:
        return None
    except storage.StorageError as error:
        raise _unwritable(error) from error
    if "run.json" in names:
        record = read_record(plan.out)
        if record.run_id != plan.run_id:
            _refuse(plan.out, f"the finished run {record.run_id}")
        return record
    if PENDING_FILE in names:
        pending = json.loads(storage.read_bytes(storage.join(plan.out, PENDING_FILE)))
        if pending["run_id"] != plan.run_id:
            _refuse(plan.out, f"the unfinished run {pending['run_id']}")
    elif names:
        _refuse(plan.out, f"{len(names)} other files, such as {names[0]}")
    return None


def _refuse(out: str, holds: str) -> None:
    raise UsageError(
        "--out must be a new folder, or that of the very same scan.",
        f"{out}, which holds {holds}",
        "Name another folder. To continue a scan repeat its command: same source, model, threshold, options.",
    )


def _unwritable(error: storage.StorageError) -> UsageError:
    return UsageError(
        "--out must be a folder that this user may list and write.",
        str(error),
        "Name another, or check its permissions; for s3:// check the AWS variables and the bucket's policy.",
    )


def begin(plan: Plan) -> None:
    """Mark the folder as this run's; the marker of an earlier start stays as it is.

    Raises:
        UsageError: the folder cannot be written.
    """
    marker = storage.join(plan.out, PENDING_FILE)
    try:
        if storage.exists(marker):
            return
        if plan.manifest.headers:
            _warn_of_undecodable(plan)
        content = {"run_id": plan.run_id, "started_at": datetime.now(UTC).isoformat(), "config": plan.config}
        storage.write_bytes(marker, (json.dumps(content, indent=2) + "\n").encode())
    except storage.StorageError as error:
        raise _unwritable(error) from error


def close(plan: Plan) -> RunRecord:
    """Write run.json from the committed chapters, after which the run is finished.

    Raises:
        JobError: storage failed; the run stays unfinished.
    """
    marker = storage.join(plan.out, PENDING_FILE)
    try:
        pending = json.loads(storage.read_bytes(marker))
        done = [chapter for _, chapter in sorted(chapters.committed(plan.checkpoint).items())]
        counts = _sum([chapter.counts for chapter in done])
        if len(done) != plan.chapters or counts.objects != plan.objects:
            raise JobError(
                f"{len(done)} of {plan.chapters} chapters with {counts.objects} of {plan.objects} objects are committed.",
                "Run the same command again.",
            )
        record = RunRecord(
            run_id=plan.run_id,
            started_at=datetime.fromisoformat(pending["started_at"]),
            ended_at=datetime.now(UTC),
            source=plan.source,
            manifest=ManifestRef(
                uri=plan.manifest.uri, digest=plan.manifest.digest, objects=plan.objects, where=plan.where
            ),
            models=list(plan.models),
            config=plan.config,
            versions=versions(),
            machine=machine(),
            counts=counts,
            parts=[part for chapter in done for part in chapter.parts],
            heatmap_parts=[part for chapter in done for part in chapter.heatmap_parts],
        )
        write_record(plan.out, record)
        _tidy(plan)
    except (storage.StorageError, OSError) as error:  # OSError is pyarrow's word for it
        raise JobError(
            f"The run could not be closed: {error}.", "Run the same command again: nothing is scored twice."
        ) from error
    return record


def _sum(counts: list[Counts]) -> Counts:
    codes: Counter[str] = Counter()
    for one in counts:
        codes.update(one.by_code)
    names = [name for name in Counts.model_fields if name != "by_code"]
    return Counts(**{name: sum(getattr(one, name) for one in counts) for name in names}, by_code=dict(codes))


def _tidy(plan: Plan) -> None:
    """Remove what only an unfinished run needs."""
    filesystem, checkpoint = storage.filesystem(plan.checkpoint)
    if filesystem.get_file_info(checkpoint).type != fs.FileType.NotFound:
        filesystem.delete_dir(checkpoint)
    storage.delete(storage.join(plan.out, PENDING_FILE))
