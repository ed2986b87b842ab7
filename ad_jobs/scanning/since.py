"""`scan --since`: what of a manifest earlier runs already have.

An object is the same as long as its URI, etag and size are; the newest run that has its URI says what it was.
It is scored again if it failed there and that is asked for, or if it was skipped there as out of a model's domain, and
this scan accepts more.
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
from ad_jobs.archive.manifest import RowReader, Selection, read_parts
from ad_jobs.archive.manifest_record import ManifestInfo, manifest_info
from ad_jobs.archive.marks import PIECE
from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.errors import ErrorCode, JobError, UsageError
from ad_jobs.results.lineage import Ancestor, ParentGone
from ad_jobs.results.run import ModelRef, RunRecord
from ad_jobs.results.score_table import ScoreTable, equal
from ad_jobs.schema import FAILED, MANIFEST
from ad_jobs.specs import Retry
from cluster.counting import counted

log = logging.getLogger("retroscan.scan")

_OBJECT = ("uri", "etag", "bytes")
_LISTED = pa.schema([MANIFEST.field(name) for name in ("object_id", *_OBJECT)])
# `run` counts from the newest ancestor, 0.
_HAD = pa.schema([*(MANIFEST.field(name) for name in _OBJECT), ("run", pa.int32()), ("again", pa.int8())])
# A list may name objects that are not there: they have neither etag nor size.
_MATCHES = """
    SELECT listed.object_id, had.run, had.again,
        listed.etag IS NOT DISTINCT FROM had.etag AND listed.bytes IS NOT DISTINCT FROM had.bytes AS same
    FROM listed JOIN had USING (uri)
"""
_BATCH_ROWS = 65_536
# Why an object that is had is scored again: it failed there, or it is out of a domain that was narrower there.
_FAILED, _OUTSIDE = 1, 2
# What is known of an object in one number, whose smallest is the newest run's: run, same, again.
_AGAIN, _SAME, _RUN = 3, 4, 8
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
        UsageError: one is of another source, lacks one of the models, accepted more, or names its objects
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
    accept: Sequence[str],
) -> Selection:
    """Of the selected objects, those that no earlier run has, or has and are to be scored again.

    Five bytes are held for each object of the manifest and two for each of an earlier run's, then eight for each that
    is left.

    Args:
        manifest: what there is now.
        selection: what a condition selects of it; None for all.
        earlier_runs: newest first.
        models: an object that failed, or was out of a domain, did so under one of these.
        retry: what is selected although it is had.
        accept: what is scored although no fit saw the like of it; where a run accepted less, so is what was out of a
            domain there.

    Raises:
        JobError: an earlier run is damaged.
    """
    known = _known(manifest, earlier_runs, models, retry, accept)
    left = np.zeros(manifest.objects, bool)
    selected = manifest.objects if selection is None else len(selection.ids)
    counts = np.zeros(_AGAIN + 1, np.int64)
    for start in range(0, selected, PIECE):
        end = min(selected, start + PIECE)
        ids = np.arange(start, end) if selection is None else selection.ids[start:end]
        code = known[ids]
        had = (code != _NONE) & (code & _SAME > 0)
        again = np.where(had, code & _AGAIN, 0)
        left[ids] = ~had | (again > 0)
        counts += np.bincount(again, minlength=_AGAIN + 1)
    del known
    found = np.flatnonzero(left)
    return Selection(
        found,
        0 if selection is None else selection.undecided,
        already=selected - len(found),
        retried=int(counts[_FAILED]),
        widened=int(counts[_OUTSIDE]),
    )


def _known(
    manifest: ManifestInfo,
    earlier_runs: Sequence[Had],
    models: Sequence[str],
    retry: Retry | None,
    accept: Sequence[str],
) -> NDArray[np.int32]:
    """By object id, what the newest run that has its URI knows of it; _NONE where none has."""
    known = np.full(manifest.objects, _NONE, np.int32)
    listed = (batch for part in read_parts(manifest, _LISTED.names) for batch in part.cast(_LISTED).to_batches())
    had = (batch for number, run in enumerate(earlier_runs) for batch in _had(number, run, models, retry, accept))
    with streaming({"listed": Stream(_LISTED, listed), "had": Stream(_HAD, had)}) as connection:
        for batch in connection.sql(_MATCHES).to_arrow_reader(_BATCH_ROWS):
            run, same, again = (batch[name].to_numpy(zero_copy_only=False) for name in ("run", "same", "again"))
            np.minimum.at(known, batch["object_id"].to_numpy(), run * _RUN + same * _SAME + again)
    return known


def _had(
    number: int, had: Had, models: Sequence[str], retry: Retry | None, accept: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """What one run has: of its manifest, the objects that stand in its table."""
    present, again = np.zeros(had.manifest.objects, bool), np.zeros(had.manifest.objects, np.int8)
    wider = bool(set(accept) - set(had.run.record.config.get("accept", [])))
    table = ScoreTable(had.run.uri, had.run.record)
    for batch in table.batches(["object_id", "status", "error_code", "model_id"]):
        ids = batch["object_id"].to_numpy()
        if len(ids) and (ids.min() < 0 or ids.max() >= had.manifest.objects):
            raise _damaged(had.run, "rows of objects that its manifest does not have")
        present[ids] = True
        of_models = pc.is_in(batch["model_id"], pa.array(models, pa.string()))
        failed = pc.and_(of_models, equal(batch, "status", FAILED)).to_numpy(zero_copy_only=False)
        outside = pc.and_(of_models, equal(batch, "error_code", ErrorCode.OUT_OF_DOMAIN)).to_numpy(zero_copy_only=False)
        if retry == "failed":
            again[ids[failed]] = _FAILED
        if wider:
            # One that failed under another model counts once, as that.
            again[ids[outside]] = np.where(again[ids[outside]] == _FAILED, _FAILED, _OUTSIDE)
    if (count := int(present.sum())) != had.run.record.counts.objects:
        raise _damaged(had.run, f"{counted(count, 'object')}, and run.json has {had.run.record.counts.objects}")
    for part in read_parts(had.manifest, _LISTED.names):
        ids = part["object_id"].to_numpy()
        of_run = part.select(list(_OBJECT)).append_column("run", pa.array(np.full(len(ids), number, np.int32)))
        of_run = of_run.append_column("again", pa.array(again[ids])).filter(pa.array(present[ids]))
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
    # What that run scored as accepted, this one would skip.
    of_run = run.record.config.get("accept", [])
    if not set(of_run) <= set(accept):
        raise UsageError(
            "--accept names all that the run of --since accepted, or more.",
            f"{run.uri}, with {', '.join(of_run)}; this has {', '.join(accept) or 'none'}",
            "Give those of that run, too, or scan without --since.",
        )


def _check_identifiers(had: Had, identifiers: Identifiers) -> None:
    mode = had.run.record.config.get("identifiers", "plain")
    if mode == identifiers.mode and _names_alike(had, identifiers):
        return
    raise UsageError(
        "Runs that are read as one have --identifiers of one kind, and hashed ones under one key.",
        f"{had.run.uri}, with {mode} ones; this is {identifiers.mode}"
        + (", the key another" if mode == identifiers.mode else ""),
        "Give the identifiers and the key of that run.",
    )


def _names_alike(had: Had, identifiers: Identifiers) -> bool:
    """Whether a run calls its first object as these identifiers would; its manifest may have been moved beside it."""
    for batch in ScoreTable(had.run.uri, had.run.record).batches(["object_id", "uri"]):
        if batch.num_rows:
            first, found = batch["object_id"].to_numpy()[:1], batch["uri"][0].as_py()
            if not 0 <= first[0] < had.manifest.objects:
                raise _damaged(had.run, "rows of objects that its manifest does not have")
            [name] = RowReader(had.manifest).rows(first, ["uri"])["uri"].to_pylist()
            return identifiers.uri(name) == str(found)
    # It had nothing new, and names nothing.
    return True
