"""What a scan resolves to, before anything is scored: objects, models, how they are judged, and the run's id.

The id follows from everything that decides the table, so that the same request finds its own run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ad_jobs.archive.containers_names import held_by
from ad_jobs.archive.identifiers import Identifiers, manifest_beside, read_identifiers
from ad_jobs.archive.listing import write_manifest
from ad_jobs.archive.manifest import RowReader, Selection, select
from ad_jobs.archive.manifest_record import RECORD, ManifestInfo, find_manifest, refusal, stored_manifest
from ad_jobs.errors import UsageError
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.images.tiling import STORED_CELL_PX
from ad_jobs.results.lineage import Ancestor, lineage
from ad_jobs.results.run import ModelRef, ParentRef, not_selected
from ad_jobs.scanning.judgement import Judgement, ModelUse
from ad_jobs.scanning.since import earlier, select_since
from ad_jobs.scanning.sizes import frame_px, score_ms
from ad_jobs.schema import SCORES_VERSION
from ad_jobs.scoring.held_out import check_hidden
from ad_jobs.scoring.model_store import CalibratedModel, read_model
from ad_jobs.specs import AUTO, CHAPTER_OBJECTS, KeepPolicy, Retry, ScanSpec
from cluster import storage

MANIFEST_FOLDER = "manifest"
# Of the folder of committed chapters; the run's id follows.
CHECKPOINT = "checkpoint-"
# Frames and heatmaps travel as uint16.
BYTES_A_VALUE = 2


@dataclass(frozen=True)
class Intent:
    """A scan, resolved: what was asked for, and what follows from it."""

    spec: ScanSpec
    run_id: str
    manifest: ManifestInfo
    # What `where` and `since` select; None without them.
    selection: Selection | None
    # The run that this one is made since.
    parent: ParentRef | None
    models: tuple[ModelRef, ...]
    # Of each model: the calibration.json that the run keeps, and the scores it came from.
    calibrations: tuple[tuple[bytes, bytes | None], ...]
    # Of each model.
    uses: tuple[ModelUse, ...]
    # The different ones among the models.
    policies: tuple[PixelPolicy, ...]
    limits: Limits
    identifiers: Identifiers
    # What an object costs all models together of one CPU's time, as their fits measured it; None if one did not.
    score_ms: float | None
    # Of each policy: the pixels of a frame at the input's size; of one that is cut as `sizes` takes it to be.
    frame_px: tuple[int, ...]

    @property
    def object_bytes(self) -> int:
        """What the decoded frame of an object takes at most, under all policies."""
        values = (px * policy.channels for px, policy in zip(self.frame_px, self.policies, strict=True))
        return BYTES_A_VALUE * sum(values)

    @property
    def heatmap_bytes(self) -> int:
        """What the heatmaps of an object's frame take, uncompressed, of all models."""
        kept = (
            -(-self.frame_px[use.policy] // (1 if self.policies[use.policy].tiles is None else STORED_CELL_PX**2))
            for use in self.uses
        )
        return BYTES_A_VALUE * sum(kept)

    @property
    def checkpoint(self) -> str:
        """The folder of the committed chapters, while the run is not closed."""
        return storage.join(self.spec.out, f"{CHECKPOINT}{self.run_id}")

    @property
    def objects(self) -> int:
        """How many objects are to be scanned."""
        return self.manifest.objects if self.selection is None else len(self.selection.ids)

    @property
    def undecided(self) -> int:
        """For how many objects `where` is NULL: they are left out."""
        return 0 if self.selection is None else self.selection.undecided

    @property
    def already(self) -> int:
        """How many objects are left out because `since` has them."""
        return 0 if self.selection is None else self.selection.already

    @property
    def not_selected(self) -> int:
        """For how many objects `where` is false."""
        return not_selected(self.manifest.objects, self.objects, self.already, self.undecided)

    @property
    def chapters(self) -> int:
        """In how many chapters."""
        return -(-self.objects // self.spec.chapter_objects)

    def ids(self, chapter: int) -> NDArray[np.int64]:
        """The ids of a chapter's objects, ascending."""
        first = chapter * self.spec.chapter_objects
        end = min(self.objects, first + self.spec.chapter_objects)
        return np.arange(first, end) if self.selection is None else self.selection.ids[first:end]


def resolve(spec: ScanSpec, *, index_to: str | None = None) -> Intent:
    """What `spec` asks for, checked against what there is.

    A source that is no manifest is indexed into `manifest_out`, or `out`/manifest, or with hashed identifiers
    `out`.manifest, if it is not there yet; or into the folder `index_to`.

    Raises:
        UsageError: a source, selection, model, key or output folder that cannot be used as given.
    """
    models = _models(spec.model)
    limits = spec.limits or _common_limits(models)
    identifiers = read_identifiers(spec.identifiers, spec.identifiers_key)
    calibrations = tuple((identifiers.calibration(model.calibration_file), model.held_out_file()) for model in models)
    for model, (_, held_out) in zip(models, calibrations, strict=True):
        check_hidden(held_out, identifiers, model.uri)
    try:
        # Before anything is listed.
        ancestors = [] if spec.since is None else lineage(spec.since)
        manifest = _manifest(spec, index_to)
        selection = None if spec.where is None else select(manifest, spec.where)
        first = np.zeros(1, np.int64) if selection is None else selection.ids[:1]
        _probe(RowReader(manifest).rows(first, ["uri"])["uri"][0].as_py())
    except storage.StorageError as error:
        raise refusal(error) from error
    policies = tuple(dict.fromkeys(model.policy for model in models))
    references = tuple(_reference(model, kept) for model, (kept, _) in zip(models, calibrations, strict=True))
    uses = tuple(
        ModelUse(
            Judgement.of(model, spec.heatmaps), policies.index(model.policy), model.domain.accepts.widened(spec.accept)
        )
        for model in models
    )
    parent = None
    if ancestors:
        had = earlier(ancestors, manifest, references, identifiers, spec.accept)
        selection = select_since(
            manifest, selection, had, [model.model_id for model in models], spec.retry, spec.accept
        )
        parent = _parent(ancestors[0], spec.retry, selection)
    run_id = id_of_run(
        manifest.digest,
        spec.where,
        references,
        limits,
        identifiers,
        parent,
        heatmaps=spec.heatmaps,
        amp=spec.amp,
        chapter_objects=spec.chapter_objects,
        accept=spec.accept,
    )
    px = frame_px(policies, models, limits, manifest)
    return Intent(
        spec,
        run_id,
        manifest,
        selection,
        parent,
        references,
        calibrations,
        uses,
        policies,
        limits,
        identifiers,
        score_ms=score_ms(models, policies, px),
        frame_px=px,
    )


def id_of_run(
    manifest_digest: str,
    where: str | None,
    models: Sequence[ModelRef],
    limits: Limits,
    identifiers: Identifiers,
    parent: ParentRef | None,
    *,
    heatmaps: KeepPolicy,
    amp: bool,
    chapter_objects: int,
    accept: Sequence[str],
) -> str:
    """12 hex digits over everything that decides the table."""
    deciding = {
        "version": SCORES_VERSION,
        "manifest": manifest_digest,
        "where": where,
        "models": [[model.model_id, model.calibration_sha256] for model in models],
        "heatmaps": heatmaps,
        "limits": limits.model_dump(mode="json"),
        "identifiers": [identifiers.mode, hashlib.sha256(b"retroscan key" + identifiers.key).hexdigest()],
        **({"since": [parent.sha256, parent.retry]} if parent is not None else {}),
        **({"amp": True} if amp else {}),
        **({"chapter": chapter_objects} if chapter_objects != CHAPTER_OBJECTS else {}),
        **({"accept": sorted(set(accept))} if accept else {}),
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


def _parent(run: Ancestor, retry: Retry | None, selection: Selection) -> ParentRef:
    return ParentRef(
        uri=run.uri,
        run_id=run.record.run_id,
        sha256=run.sha256,
        retry=retry,
        retried=selection.retried,
        widened=selection.widened,
    )


def _models(uris: Sequence[str]) -> list[CalibratedModel]:
    try:
        found = [read_model(uri) for uri in uris]
    except storage.StorageError as error:
        raise refusal(error) from error
    seen: dict[str, str] = {}
    for model in found:
        if model.model_id in seen:
            raise UsageError(
                "The models of a scan must differ: rows are told apart by model_id.",
                f"{seen[model.model_id]} and {model.uri}, both {model.model_id}",
                "Name each --model once.",
            )
        seen[model.model_id] = model.uri
    return found


def _common_limits(models: list[CalibratedModel]) -> Limits:
    """What one object may cost: every model sees the same objects, so it is decided once."""
    limits = models[0].limits
    for model in models[1:]:
        if model.limits != limits:
            raise UsageError(
                "Models scanned with at once must have been fitted under the same limits.",
                f"{models[0].uri}: {limits.model_dump()}; {model.uri}: {model.limits.model_dump()}",
                "Scan with each into a run of its own, or give --limits.",
            )
    return limits


def _reference(model: CalibratedModel, kept: bytes) -> ModelRef:
    calibration = model.calibration
    return ModelRef(
        model_id=model.model_id,
        uri=model.uri,
        kind=model.kind,
        threshold=calibration.threshold,
        calibration_sha256=model.calibration_sha256,
        weights_sha256=str(model.record["weights_sha256"]),
        source=model.record["source"],
        auto=model.record.get(AUTO),
        policy=model.policy.model_dump(mode="json"),
        heatmap_low=calibration.heatmap_low,
        heatmap_high=calibration.heatmap_high,
        heatmap_anchor=calibration.heatmap_anchor,
        detector_sha256=model.record_sha256,
        kept_calibration_sha256=hashlib.sha256(kept).hexdigest(),
        calibration_id=calibration.id,
        held_out_sha256=calibration.held_out_sha256,
    )


def _manifest(spec: ScanSpec, index_to: str | None) -> ManifestInfo:
    hashed = spec.identifiers == "hashed"
    if (given := find_manifest(spec.source)) is not None:
        if spec.manifest_out is not None:
            raise UsageError(
                "--manifest-out is for a SOURCE that is no manifest.",
                f"--manifest-out {spec.manifest_out}",
                "Leave it out.",
            )
        if hashed:
            _check_nothing_plain(spec, given.uri)
        return given
    folder = spec.manifest_out or (manifest_beside(spec.out) if hashed else storage.join(spec.out, MANIFEST_FOLDER))
    if hashed:
        _check_nothing_plain(spec, folder)
    if (stored := stored_manifest(folder)) is None:
        return write_manifest(spec.source, index_to or folder)
    # Listed once: what a resumed run works on is the archive as it was when the run began.
    if stored.source != spec.source:
        if spec.manifest_out is not None:
            raise UsageError(
                "--manifest-out must be a new folder, or that of the very same scan.",
                f"{spec.manifest_out}, a manifest of {stored.source}",
                "Name another folder.",
            )
        raise folder_in_use(spec.out, f"a scan of {stored.source}")
    return stored


def _check_nothing_plain(spec: ScanSpec, manifest: str) -> None:
    """Refuse a manifest, with its plain URIs, below a run with hashed ones."""
    below = storage.join(spec.out, MANIFEST_FOLDER)
    # As earlier versions left it.
    plain = manifest if (manifest + "/").startswith(spec.out + "/") else below
    if plain == manifest or storage.exists(storage.join(below, RECORD)):
        raise UsageError(
            "Nothing below a run with hashed identifiers says where an object lies.",
            f"the manifest {plain} in {spec.out}",
            f"Move it, for example to {manifest_beside(spec.out)}, and repeat the command.",
        )


def folder_in_use(out: str, holds: str) -> UsageError:
    """The refusal of an output folder that holds something else."""
    return UsageError(
        "--out must be a new folder, or that of the very same scan.",
        f"{out}, which holds {holds}",
        "Name another folder. To continue a scan repeat its command: same source, model, threshold, options.",
    )


def _probe(uri: str) -> None:
    """Raise StorageError if the store refuses or does not answer: one message, not a table of failures."""
    if storage.is_s3(uri):
        storage.exists(held_by(uri))
