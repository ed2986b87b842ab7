"""`scan --since`: what of a manifest earlier runs already have.

An object is the same as long as its URI, etag and size are; the newest run that has its URI says what it was.
A run that was itself made since another is read with that one, and so on to the first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_jobs.archive.identifiers import Identifiers, is_hashed, manifest_beside
from ad_jobs.archive.manifest import Selection, read_parts
from ad_jobs.archive.manifest_record import ManifestInfo, manifest_info
from ad_jobs.errors import JobError, UsageError
from ad_jobs.results.lineage import Ancestor, ParentGone
from ad_jobs.results.run import ModelRef, RunRecord
from ad_jobs.results.score_table import ScoreTable, equal
from ad_jobs.results.streamed import Stream, streaming
from ad_jobs.schema import FAILED, MANIFEST
from ad_jobs.specs import Retry

log = logging.getLogger("retroscan.scan")

_OBJECT = ("uri", "etag", "bytes")
_LISTED = pa.schema([MANIFEST.field(name) for name in ("object_id", *_OBJECT)])
# `run` counts from the newest ancestor, 0.
_HAD = pa.schema([*(MANIFEST.field(name) for name in _OBJECT), ("run", pa.int32()), ("failed", pa.bool_())])
# A list may name objects that are not there: they have neither etag nor size.
_MATCHES = """
    SELECT listed.object_id, had.run, had.failed,
        listed.etag IS NOT DISTINCT FROM had.etag AND listed.bytes IS NOT DISTINCT FROM had.bytes AS same
    FROM listed JOIN had USING (uri)
"""
_BATCH_ROWS = 65_536
# What is known of an object in one number, whose smallest is the newest run's: run, same, failed.
_SAME, _FAILED, _RUN = 2, 1, 4
_NONE = np.iinfo(np.int32).max


class Had(NamedTuple):
    """An earlier run and the manifest that its ids are of."""

    run: Ancestor
    manifest: ManifestInfo


def earlier(
    ancestors: Sequence[Ancestor],
    manifest: ManifestInfo,
    models: Sequence[ModelRef],
    identifiers: Identifiers,
    accept: Sequence[str],
) -> list[Had]:
    """The runs whose objects are had, newest first.

    Raises:
        ParentGone: the manifest of one is not where the run left it.
        UsageError: one is of another source, lacks one of the models, accepted something else, or names its objects
            otherwise.
    """
    found = [Had(ancestor, manifest_of(ancestor.uri, ancestor.record)) for ancestor in ancestors]
    for had in found:
        _check_source(had, manifest)
        _check_models(had.run, models)
        _check_accept(had.run, accept)
        _check_identifiers(had, identifiers)
    return found


def manifest_of(run_uri: str, record: RunRecord) -> ManifestInfo:
    """The manifest that a run was made of, where the run left it.

    Raises:
        ParentGone: it is not there any more, or is another one by now.
    """
    recorded = record.manifest.uri
    place = manifest_beside(run_uri) if is_hashed(recorded) else recorded
    rule = "Etags and sizes of the objects that a run has stand in its manifest."
    remedy = "Restore it where the run left it, or scan without --since."
    try:
        found = manifest_info(place)
    except UsageError as error:
        raise ParentGone(rule, f"{run_uri}, whose manifest {place} is not there", remedy) from error
    if found.digest != record.manifest.digest:
        raise ParentGone(rule, f"{run_uri}, and {place} is another manifest by now", remedy)
    return found


def select_since(
    manifest: ManifestInfo,
    selection: Selection | None,
    earlier_runs: Sequence[Had],
    models: Sequence[str],
    retry: Retry | None,
) -> Selection:
    """Of the selected objects, those that no earlier run has, and with `retry` those that failed there.

    Four bytes are held for each object of the manifest, two for each of an earlier run's.

    Args:
        manifest: what there is now.
        selection: what a condition selects of it; None for all.
        earlier_runs: newest first.
        models: an object that failed did so under one of these.
        retry: what is selected although it is had.

    Raises:
        JobError: an earlier run is damaged.
    """
    known = _known(manifest, earlier_runs, models)
    had = (known != _NONE) & (known & _SAME > 0)
    again = had & (known & _FAILED > 0) & (retry == "failed")
    ids = np.arange(manifest.objects) if selection is None else selection.ids
    left = ids[~had[ids] | again[ids]]
    return Selection(
        left,
        0 if selection is None else selection.undecided,
        already=len(ids) - len(left),
        retried=int(again[ids].sum()),
    )


def _known(manifest: ManifestInfo, earlier_runs: Sequence[Had], models: Sequence[str]) -> NDArray[np.int32]:
    """By object id, what the newest run that has its URI knows of it; _NONE where none has."""
    known = np.full(manifest.objects, _NONE, np.int32)
    listed = (batch for part in read_parts(manifest, _LISTED.names) for batch in part.cast(_LISTED).to_batches())
    had = (batch for number, run in enumerate(earlier_runs) for batch in _had(number, run, models))
    with streaming({"listed": Stream(_LISTED, listed), "had": Stream(_HAD, had)}) as connection:
        for batch in connection.sql(_MATCHES).to_arrow_reader(_BATCH_ROWS):
            run, same, failed = (batch[name].to_numpy(zero_copy_only=False) for name in ("run", "same", "failed"))
            np.minimum.at(known, batch["object_id"].to_numpy(), run * _RUN + same * _SAME + failed * _FAILED)
    return known


def _had(number: int, had: Had, models: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """What one run has: of its manifest, the objects that stand in its table."""
    present, failed = np.zeros(had.manifest.objects, bool), np.zeros(had.manifest.objects, bool)
    table = ScoreTable(had.run.uri, had.run.record)
    for batch in table.batches(["object_id", "status", "model_id"]):
        ids = batch["object_id"].to_numpy()
        if len(ids) and (ids.min() < 0 or ids.max() >= had.manifest.objects):
            raise _damaged(had.run, "rows of objects that its manifest does not have")
        present[ids] = True
        of_models = pc.is_in(batch["model_id"], pa.array(models, pa.string()))
        failed[ids[pc.and_(of_models, equal(batch, "status", FAILED)).to_numpy(zero_copy_only=False)]] = True
    if (count := int(present.sum())) != had.run.record.counts.objects:
        raise _damaged(had.run, f"{count} objects, and run.json has {had.run.record.counts.objects}")
    for part in read_parts(had.manifest, _LISTED.names):
        ids = part["object_id"].to_numpy()
        of_run = part.select(list(_OBJECT)).append_column("run", pa.array(np.full(len(ids), number, np.int32)))
        of_run = of_run.append_column("failed", pa.array(failed[ids])).filter(pa.array(present[ids]))
        yield from of_run.cast(_HAD).to_batches(_BATCH_ROWS)


def _damaged(run: Ancestor, what: str) -> JobError:
    return JobError(f"The table of the run {run.uri} has {what}.", "See verify; restore it, or scan without --since.")


def _check_source(had: Had, manifest: ManifestInfo) -> None:
    # Objects of lists may lie anywhere, whatever the list is called.
    both_lists = had.manifest.root is None and manifest.root is None
    if had.manifest.source != manifest.source and not both_lists:
        raise UsageError(
            "--since is a run of the same source.",
            f"{had.run.uri}, of {had.manifest.source}; this is {manifest.source}",
            "Name a run of this source, or scan without --since.",
        )


def _check_models(run: Ancestor, models: Sequence[ModelRef]) -> None:
    of_run = {model.model_id: model for model in run.record.models}
    if missing := [model for model in models if model.model_id not in of_run]:
        raise UsageError(
            "--since is a run under the same models, or more: others have scored nothing yet.",
            f"{run.uri}, without {', '.join(f'{model.uri} ({model.model_id})' for model in missing)}",
            "Scan everything under a new model once, without --since.",
        )
    for model in models:
        if model.calibration_sha256 != of_run[model.model_id].calibration_sha256:
            log.warning(
                "Model %s was calibrated anew since run %s: its threshold was %.6g, it is %.6g. Old rows keep theirs.",
                model.model_id,
                run.record.run_id,
                of_run[model.model_id].threshold,
                model.threshold,
            )


def _check_accept(run: Ancestor, accept: Sequence[str]) -> None:
    # What one skips as out of its domain, another would score.
    of_run = run.record.config.get("accept", [])
    if set(of_run) != set(accept):
        raise UsageError(
            "--since is a run with the same --accept: what is out of a model's domain was skipped there.",
            f"{run.uri}, with {', '.join(of_run) or 'none'}; this has {', '.join(accept) or 'none'}",
            "Give those of that run, or scan without --since.",
        )


def _check_identifiers(had: Had, identifiers: Identifiers) -> None:
    mode = had.run.record.config.get("identifiers", "plain")
    if mode == identifiers.mode and identifiers.uri(had.manifest.uri) == had.run.record.manifest.uri:
        return
    raise UsageError(
        "Runs that are read as one have --identifiers of one kind, and hashed ones under one key.",
        f"{had.run.uri}, with {mode} ones; this is {identifiers.mode}"
        + (", the key another" if mode == identifiers.mode else ""),
        "Give the identifiers and the key of that run.",
    )
