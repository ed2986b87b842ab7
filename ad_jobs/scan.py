"""`retroscan scan`: an archive and a model in, a table of scores out. Streaming, resumable, on Ray Data.

    manifest slices -> fetch + decode (CPU tasks) -> detector (actor pool) -> heatmap shards + Parquet parts
    (tasks)

Run again, the same command continues where it stopped: parts that are committed are not done again. What a
stage does to its rows stands in `stages`; here is how Ray runs them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from ad_jobs import run_state
from ad_jobs.errors import JobError, TooManyFailed, UsageError
from ad_jobs.images.decode import Decoded
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.manifest import refusal
from ad_jobs.results.heatmaps import KeepPolicy
from ad_jobs.results.run import RunRecord
from ad_jobs.results.schema import SCORES
from ad_jobs.run_state import Plan
from ad_jobs.stages import (
    IdentifierMode,
    Identifiers,
    ModelUse,
    finish_rows,
    prepare_objects,
    score_objects,
)
from cluster import dataset, storage
from cluster.errors import ClusterError
from cluster.session import Resources, data_context, plan, session

# torch stands behind these two. Fetching workers import this module for `_fetch` and do without it.
if TYPE_CHECKING:
    from ad_jobs.modelstore import OpenModel

log = logging.getLogger("retroscan.scan")

PART_BYTES = 256 << 20  # of uncompressed heatmaps one writing task may come to hold, were all of them kept
MAX_PART_OBJECTS = 20_000
PARTS_AT_LEAST = 100  # of a large run: a killed driver loses at most what is not yet in a part


def scan(
    source: str,
    models: list[str],
    out: str,
    *,
    where: str | None = None,
    heatmaps: KeepPolicy = "flagged",
    identifiers: IdentifierMode = "plain",
    identifiers_key: bytes | None = None,
    max_failed: float = 1.0,
    limits: Limits | None = None,
    address: str | None = None,
    num_cpus: int | None = None,
    batch_size: int | None = None,
    config: dict[str, Any] | None = None,
) -> RunRecord:
    """The record of the finished run in `out`, whose table has every object of `source`.

    Args:
        source: directory, s3:// prefix, manifest or list; what is no manifest is indexed into `out`/manifest,
        once.
        models: the models to score with; each object is fetched and decoded once for all of them.
        out: where the run is written; the same call again continues an interrupted run, or returns a finished
        one.
        where: SQL condition over the manifest's columns that selects objects.
        heatmaps: keep those of flagged images and 1 % of the rest, all, or none.
        identifiers: DICOM UIDs as they are, hashed (URIs too) with `identifiers_key`, or left out.
        max_failed: the share of objects that may fail, 0 to 1.
        limits: what one object may cost; the model's own by default.
        address: a running Ray cluster; embedded by default, with `num_cpus` logical CPUs.
        batch_size: frames scored at once; it does not change a score.
        config: the resolved configuration, for run.json.

    Raises:
        UsageError: refused before any work: a rule broken, the value, the remedy.
        JobError: the workers failed, or the table does not balance; what is done is kept.
        TooManyFailed: the run is complete, but more than `max_failed` of its objects failed.
    """
    started = time.monotonic()
    opened = _open(models)
    if not 0.0 <= max_failed <= 1.0:
        raise UsageError(
            "--max-failed must be a share of the objects, 0 to 1.", max_failed, "Give 0.05 for 5 %."
        )
    intent = run_state.intend(
        source, out, opened, where=where, heatmaps=heatmaps, limits=limits or _common_limits(opened),
        identifiers=_identifiers(identifiers, identifiers_key), config=config or {},
    )  # fmt: skip
    record = run_state.finished(intent)
    if record is not None:
        log.info("The run in %s is finished already.", intent.out)
    else:
        run_state.begin(intent)
        _run(intent, address, num_cpus, batch_size)
        record = run_state.close(intent)
    counts = record.counts
    log.info(
        "%d scored + %d failed + %d skipped = %d in the manifest; %d rows, %d flagged, %.1f s",
        counts.scored, counts.failed, counts.skipped, counts.objects, counts.rows, counts.flagged,
        time.monotonic() - started,
    )  # fmt: skip
    if counts.failed > max_failed * counts.objects:
        raise TooManyFailed(counts.failed, counts.objects, max_failed)
    return record


def _open(models: list[str]) -> list[OpenModel]:
    if not models:
        raise UsageError(
            "A scan takes one or more --model.", "none", "Name a folder that `retroscan fit` wrote."
        )
    from ad_jobs.modelstore import open_model

    try:
        opened = [open_model(model) for model in models]
    except storage.StorageError as error:
        raise refusal(error) from error
    seen: dict[str, str] = {}
    for model in opened:
        if model.model_id in seen:
            raise UsageError(
                "The models of a scan must differ: rows are told apart by model_id.",
                f"{seen[model.model_id]} and {model.uri}, both {model.model_id}",
                "Name each --model once.",
            )
        seen[model.model_id] = model.uri
    return opened


def _common_limits(models: list[OpenModel]) -> Limits:
    """What one object may cost: every model sees the same objects, so it is decided once."""
    limits = models[0].limits
    for model in models[1:]:
        if model.limits != limits:
            raise UsageError(
                "Models scanned with at once must have been fitted under the same limits.",
                f"{models[0].uri}: {limits.model_dump()}; {model.uri}: {model.limits.model_dump()}",
                "Scan with each into a run of its own, or give `limits` in --config.",
            )
    return limits


def _identifiers(mode: IdentifierMode, key: bytes | None) -> Identifiers:
    if mode == "hashed" and not key:
        raise UsageError(
            "--identifiers hashed needs a key that is kept outside the table.",
            "no key",
            "Give --identifiers-key FILE; the same key gives the same pseudonyms in another run.",
        )
    return Identifiers(mode, key or b"")


def _run(intent: Plan, address: str | None, num_cpus: int | None, batch_size: int | None) -> None:
    """Score what is left and write it; every part is committed when this returns."""
    filesystem, parts = storage.filesystem(storage.join(intent.out, "scores"))
    _, commits = storage.filesystem(intent.commits)
    done = dataset.recover(parts, commits, filesystem, "object_id")
    left = _left(intent.objects, done)
    if len(done):
        log.info("Continuing: %d of %d objects are done.", len(done), intent.objects.num_rows)
    if not left.num_rows:
        return
    try:
        with session(address, num_cpus=num_cpus) as has:
            resources = plan(has.cpus, has.gpus, has.memory)
            if batch_size is not None:
                resources = resources._replace(batch_size=batch_size, block_rows=2 * batch_size)
            log.info(
                "Scoring %d objects: %d actor(s) of %g CPUs and %g GPUs, batches of %d.",
                left.num_rows, resources.actors, resources.actor_cpus, resources.actor_gpus,
                resources.batch_size,
            )  # fmt: skip
            with data_context() as context:
                context.checkpoint_config = dataset.checkpoint(commits, filesystem, "object_id")
                sink = dataset.PartSink(
                    parts,
                    filesystem,
                    schema=SCORES,
                    finish=partial(finish_rows, run_uri=intent.out, run_id=intent.run_id, models=intent.uses),
                    min_rows=_part_rows(left.num_rows, intent, resources.batch_size),
                )
                _pipeline(left, intent, resources).write_datasink(
                    sink, ray_remote_args={"num_cpus": resources.write_cpus}
                )
    except ClusterError as error:
        raise JobError(error.problem, error.remedy) from error
    except RayError as error:
        raise JobError(
            f"The scan's workers failed: {_cause(error)}.",
            "Run the same command again: it continues from here.",
        ) from error


def _left(objects: pa.Table, done: NDArray[np.int64]) -> pa.Table:
    if not len(done):
        return objects
    return objects.filter(pa.array(~np.isin(objects["object_id"].to_numpy(), done)))


def _part_rows(objects: int, intent: Plan, batch_size: int) -> int:
    """Objects of one part: a hundredth of the run, so few that all of their heatmaps fit into PART_BYTES."""
    policies = [intent.policies[use.policy] for use in intent.uses]
    fit = PART_BYTES // sum(2 * policy.height_px * policy.width_px for policy in policies)
    return max(batch_size, min(objects // PARTS_AT_LEAST, fit, MAX_PART_OBJECTS))


def _pipeline(left: pa.Table, intent: Plan, resources: Resources) -> ray.data.Dataset:
    rows = min(resources.block_rows, max(1, -(-left.num_rows // 8)))  # a small run, too, keeps every CPU busy
    slices = dataset.SliceSource(left, rows)
    # Reading and fetching have equal resources, so that Ray makes one task of them; scoring has others.
    fetched = ray.data.read_datasource(
        slices, override_num_blocks=slices.tasks, num_cpus=resources.fetch_cpus
    ).map_batches(
        partial(_fetch, policies=intent.policies, limits=intent.limits, identifiers=intent.identifiers),
        batch_size=None,  # the slice; a number, even the same one, would keep Ray from fusing
        batch_format="pyarrow",
        num_cpus=resources.fetch_cpus,
    )
    return fetched.map_batches(
        _ScoringActor,
        fn_constructor_kwargs={
            "uris": [model.uri for model in intent.models], "uses": intent.uses, "policies": intent.policies,
            "batch_size": resources.batch_size, "threads": resources.actor_threads,
        },
        batch_size=resources.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=resources.actors),
        num_cpus=resources.actor_cpus,
        num_gpus=resources.actor_gpus,
    )  # fmt: skip


_decoder: GuardedDecoder | None = None


class _WorkersDecoder:
    """The worker process's own decoder child, kept between tasks: starting one costs many decodes."""

    def decode_each(self, data: bytes, policies: Sequence[PixelPolicy], limits: Limits) -> list[Decoded]:
        global _decoder
        if _decoder is None:
            _decoder = GuardedDecoder()  # its child ends with this process
        return _decoder.decode_each(data, policies, limits)


def _fetch(
    manifest: pa.Table, policies: Sequence[PixelPolicy], limits: Limits, identifiers: Identifiers
) -> pa.Table:
    return prepare_objects(manifest, policies, limits, _WorkersDecoder(), identifiers)


class _ScoringActor:
    """Loads the models by their paths and checks that they are those the run was planned with."""

    def __init__(
        self,
        uris: list[str],
        uses: Sequence[ModelUse],
        policies: Sequence[PixelPolicy],
        batch_size: int,
        threads: int,
    ) -> None:
        from ad_jobs.modelstore import open_model
        from ad_jobs.scoring import Scorer

        self._policies = policies
        self._models = []
        for uri, use in zip(uris, uses, strict=True):
            model = open_model(uri)
            if model.model_id != use.judgement.model_id:
                raise JobError(
                    f"The model at {uri} changed while the scan ran: {use.judgement.model_id} before, "
                    f"{model.model_id} now.",
                    "Restore it, and run the same command again.",
                )
            self._models.append((Scorer(model.detector, batch_size=batch_size, threads=threads), use))

    def __call__(self, prepared: pa.Table) -> pa.Table:
        return score_objects(prepared, self._policies, self._models)


def _cause(error: BaseException) -> str:
    """The innermost message of a chain: Ray wraps a worker's error several times over."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
