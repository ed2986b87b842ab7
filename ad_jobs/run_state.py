"""A run's life on disk: intended, begun (`run.pending.json`), closed (`run.json`); may it be continued?

The run id follows from everything that decides the table, so the same command finds its own run again and
another command is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ad_jobs.errors import JobError, UsageError
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.index import index
from ad_jobs.manifest import ManifestInfo, find_manifest, read_manifest, refusal
from ad_jobs.results.heatmaps import KeepPolicy
from ad_jobs.results.parts import HEATMAPS_FOLDER
from ad_jobs.results.run import (
    ManifestRef,
    ModelRef,
    RunRecord,
    assert_balanced,
    count_table,
    describe_heatmap_parts,
    describe_parts,
    machine,
    part_uris,
    read_record,
    versions,
    write_record,
)
from ad_jobs.results.schema import SCORES_VERSION
from ad_jobs.sources import source_uri
from ad_jobs.stages import MANIFEST_COLUMNS, Identifiers, Judgement, ModelUse
from cluster import storage

if TYPE_CHECKING:
    from ad_jobs.modelstore import OpenModel

log = logging.getLogger("retroscan.scan")

PENDING_FILE = "run.pending.json"
MANIFEST_FOLDER = "manifest"


@dataclass(frozen=True)
class Plan:
    """A run, resolved: what is to be scanned with what, how it is judged, and where it goes."""

    run_id: str
    source: str
    out: str
    manifest: ManifestInfo
    where: str | None
    objects: pa.Table  # MANIFEST_COLUMNS of the selected objects, ascending ids
    models: tuple[ModelRef, ...]
    uses: tuple[ModelUse, ...]  # of each model
    policies: tuple[PixelPolicy, ...]  # the different ones among the models
    limits: Limits
    identifiers: Identifiers
    config: dict[str, Any]

    @property
    def commits(self) -> str:
        """Where the ids of committed parts are kept while the run is not closed."""
        return storage.join(self.out, f"checkpoint-{self.run_id}")


def intend(
    source: str,
    out: str,
    models: list[OpenModel],
    *,
    where: str | None,
    heatmaps: KeepPolicy,
    limits: Limits,
    identifiers: Identifiers,
    config: dict[str, Any],
) -> Plan:
    """The resolved run; a SOURCE that is no manifest is indexed into `out`/manifest, if that is not done.

    Raises:
        UsageError: a source, selection or output folder that cannot be used as given.
    """
    source, out = source_uri(source), source_uri(out)
    try:
        manifest = _manifest(source, out)
        objects = read_manifest(manifest.uri, columns=MANIFEST_COLUMNS, where=where)
        _probe(objects["uri"][0].as_py())
        if manifest.headers:
            syntaxes = read_manifest(manifest.uri, columns=["transfer_syntax"], where=where)[
                "transfer_syntax"
            ]
            for syntax, count in undecodable(syntaxes).items():
                log.warning(
                    "%d objects have transfer syntax %s: no decoder here, they will fail.", count, syntax
                )
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
    }
    return Plan(
        run_id=hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12],
        source=source,
        out=out,
        manifest=manifest,
        where=where,
        objects=objects,
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
        config={
            **config, "where": where, "heatmaps": heatmaps, "identifiers": identifiers.mode,
            "limits": deciding["limits"],
        },
    )  # fmt: skip


def _reference(model: OpenModel) -> ModelRef:
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


def _manifest(source: str, out: str) -> ManifestInfo:
    if (given := find_manifest(source)) is not None:
        return given
    below = storage.join(out, MANIFEST_FOLDER)
    if (stored := find_manifest(below)) is None:
        return index(source, below)
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


def finished(plan: Plan) -> RunRecord | None:
    """The record of this very run if it is closed; None if it is to be begun or continued.

    Raises:
        UsageError: the folder holds another run, or something else.
    """
    try:
        # A call that ends here before `begin` has left at most the manifest.
        names = [name for name in storage.list_names(plan.out) if not name.startswith(f"{MANIFEST_FOLDER}/")]
    except storage.NotFound:
        return None
    except storage.StorageError as error:
        raise _unwritable(error) from error
    if "run.json" in names:
        record = read_record(plan.out)
        if record.run_id != plan.run_id:
            _refuse(plan.out, f"the finished run {record.run_id}")
        _tidy(plan)
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
        content = {"run_id": plan.run_id, "started_at": datetime.now(UTC).isoformat(), "config": plan.config}
        storage.write_bytes(marker, (json.dumps(content, indent=2) + "\n").encode())
    except storage.StorageError as error:
        raise _unwritable(error) from error


def close(plan: Plan) -> RunRecord:
    """Count the table, assert its balance, and write run.json, after which the run is finished.

    Raises:
        JobError: the table does not hold every object exactly once, or storage failed; the run stays
        unfinished.
    """
    marker = storage.join(plan.out, PENDING_FILE)
    try:
        pending = json.loads(storage.read_bytes(marker))
        ids = plan.objects["object_id"].to_numpy()
        model_ids = [model.model_id for model in plan.models]
        table = count_table(plan.out, objects=len(ids), model_ids=model_ids, selected=ids)
        assert_balanced(table, len(ids))
        _drop_orphans(plan.out)
        record = RunRecord(
            run_id=plan.run_id,
            started_at=datetime.fromisoformat(pending["started_at"]),
            ended_at=datetime.now(UTC),
            source=plan.source,
            manifest=ManifestRef(
                uri=plan.manifest.uri, digest=plan.manifest.digest, objects=len(ids), where=plan.where
            ),
            models=list(plan.models),
            config=plan.config,
            versions=versions(),
            machine=machine(),
            counts=table.counts,
            parts=describe_parts(plan.out),
            heatmap_parts=describe_heatmap_parts(plan.out),
        )
        write_record(plan.out, record)
        _tidy(plan)
    except (storage.StorageError, OSError) as error:  # OSError is pyarrow's word for it
        raise JobError(
            f"The run could not be closed: {error}.", "Run the same command again: nothing is scored twice."
        ) from error
    return record


def _tidy(plan: Plan) -> None:
    """Remove what only an unfinished run needs."""
    filesystem, commits = storage.filesystem(plan.commits)
    if filesystem.get_file_info(commits).type != fs.FileType.NotFound:
        filesystem.delete_dir(commits)
    storage.delete(storage.join(plan.out, PENDING_FILE))


def _drop_orphans(out: str) -> None:
    """Delete heatmap shards that no row refers to: a killed task's part was dropped, its shard was not."""
    referenced: set[str] = set()
    for uri in part_uris(out):
        filesystem, path = storage.filesystem(uri)
        with filesystem.open_input_file(path) as file:
            column = pq.read_table(file, columns=["heatmap"])["heatmap"].drop_null()
        referenced |= {reference.partition("#")[0] for reference in np.unique(column.to_numpy())}
    root = storage.join(out, HEATMAPS_FOLDER)
    if not storage.is_folder(root):
        return
    for name in storage.list_names(root):
        if f"{HEATMAPS_FOLDER}/{name}" not in referenced:
            log.info("Dropping %s: no row refers to it.", name)
            storage.delete(storage.join(root, name))
