"""`retroscan scan`: an archive and a model in, a table of scores out. Streaming, resumable, on Ray Data.

    manifest slices -> fetch + decode (CPU tasks) -> detector (actor pool) -> heatmap shards + Parquet parts
    (tasks)

chapter after chapter (see `chapters`). Run again, the same command continues where it stopped: what is in a part is not
done again. What a stage does to its rows stands in `stages`; here is how Ray runs them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from ad_jobs.archive.fetching import FAILED, SCORED, status_of
from ad_jobs.archive.manifest import RowReader, refusal
from ad_jobs.errors import JobError, RetroscanError, TooManyFailed, UsageError
from ad_jobs.images.decode import Decoded
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.heatmaps import KeepPolicy
from ad_jobs.results.run import RunRecord
from ad_jobs.scanning import chapters, run_state
from ad_jobs.scanning.progress import ScanProgress
from ad_jobs.scanning.run_state import Plan
from ad_jobs.scanning.stages import (
    MANIFEST_COLUMNS,
    IdentifierMode,
    Identifiers,
    ModelUse,
    prepare_objects,
    score_objects,
    write_part,
)
from ad_jobs.scoring.model_store import CalibratedModel, open_model, read_model
from cluster import dataset, messages, storage
from cluster.division import Resources, plan
from cluster.errors import ClusterError
from cluster.metrics import ScanMetrics
from cluster.session import Session, data_context, session
from cluster.storage.lease import Lease

if TYPE_CHECKING:  # torch stands behind it; driver and fetching workers do without
    from ad_jobs.scoring.scorer import Scorer

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
    amp: bool = False,
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
        max_failed: the share of objects that may fail, 0 to 1; one more, and the run ends where it is.
        limits: what one object may cost; the model's own by default.
        address: a running Ray cluster; embedded by default, with `num_cpus` logical CPUs.
        batch_size: frames scored at once; it does not change a score.
        amp: compute in reduced precision, on GPUs alone; scores then agree within `scoring.AMP_TOLERANCE`.
        config: the resolved configuration, for run.json.

    Raises:
        UsageError: refused before any work: a rule broken, the value, the remedy.
        JobError: the workers failed, or the table does not balance; what is done is kept.
        TooManyFailed: more than `max_failed` of the objects failed; the run is unfinished, what is done is kept.
    """
    started = time.monotonic()
    if not 0.0 <= max_failed <= 1.0:
        raise UsageError("--max-failed must be a share of the objects, 0 to 1.", max_failed, "Give 0.05 for 5 %.")
    intent = resolve(
        source,
        models,
        out,
        where=where,
        heatmaps=heatmaps,
        identifiers=identifiers,
        identifiers_key=identifiers_key,
        limits=limits,
        amp=amp,
        config=config,
    )
    record = run_state.finished(intent)
    if record is not None:
        log.info("The run in %s is finished already.", intent.out)
    else:
        with _errors_of_ray(), ExitStack() as stack:
            if amp:  # before the folder is this run's: without --amp it will be another
                refuse_amp_without_gpu(stack.enter_context(session(address, num_cpus=num_cpus)))
            lease = stack.enter_context(run_state.writing(intent))
            record = run_state.finished(intent)  # by the one who had the folder until now
            if record is None:
                run_state.begin(intent)
                _run(intent, lease, max_failed, address, num_cpus, batch_size)
                record = run_state.close(intent)
    counts = record.counts
    log.info(
        "%d scored + %d failed + %d skipped = %d in the manifest; %d rows, %d flagged, %.1f s",
        counts.scored,
        counts.failed,
        counts.skipped,
        counts.objects,
        counts.rows,
        counts.flagged,
        time.monotonic() - started,
    )
    if counts.failed > max_failed * counts.objects:  # a finished run, asked for again under a stricter rule
        raise TooManyFailed(counts.failed, counts.objects, max_failed)
    return record


def resolve(
    source: str,
    models: list[str],
    out: str,
    *,
    where: str | None = None,
    heatmaps: KeepPolicy = "flagged",
    identifiers: IdentifierMode = "plain",
    identifiers_key: bytes | None = None,
    limits: Limits | None = None,
    amp: bool = False,
    config: dict[str, Any] | None = None,
    index_to: str | None = None,
) -> Plan:
    """The run that `scan` would make, its source indexed (see `run_state.intend`); raises UsageError as `scan` does."""
    found = _read(models)
    return run_state.intend(
        source,
        out,
        found,
        where=where,
        heatmaps=heatmaps,
        limits=limits or _common_limits(found),
        identifiers=_identifiers(identifiers, identifiers_key),
        amp=amp,
        config=config or {},
        index_to=index_to,
    )


def refuse_amp_without_gpu(has: Session) -> None:
    """Raise UsageError where a scan with `amp` would find no GPU."""
    if has.gpus < 1:
        from ad_jobs.scoring.scorer import no_gpu_for_amp

        raise no_gpu_for_amp(f"a cluster of {has.cpus:g} CPUs and {has.gpus:g} GPUs")


def _read(models: list[str]) -> list[CalibratedModel]:
    if not models:
        raise UsageError("A scan takes one or more --model.", "none", "Name a folder that `retroscan fit` wrote.")
    try:
        found = [read_model(model) for model in models]
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


def _run(
    intent: Plan, lease: Lease, max_failed: float, address: str | None, num_cpus: int | None, batch_size: int | None
) -> None:
    """Score what is left of every chapter; all of them are committed when this returns."""
    committed = chapters.committed(intent.checkpoint)
    done = sum(chapter.counts.objects for chapter in committed.values())
    failed_before = sum(chapter.counts.failed for chapter in committed.values())
    manifest = RowReader(intent.manifest)

    def check(failed: int) -> None:
        lease.check()
        if failed > max_failed * intent.objects:
            raise TooManyFailed(failed, intent.objects, max_failed)

    with ExitStack() as stack:
        work: _Work | None = None
        for number in range(intent.chapters):
            if number in committed:
                continue
            objects = manifest.rows(intent.ids(number), MANIFEST_COLUMNS)
            left = chapters.left_to_do(intent.out, number, objects)
            # More than once only where another process, thought dead, has written a part meanwhile.
            while left.objects.num_rows:
                failed = failed_before + left.failed
                check(failed)
                if work is None:  # Ray starts only if there is work
                    done += objects.num_rows - left.objects.num_rows
                    work = stack.enter_context(_at_work(intent, done, failed, address, num_cpus, batch_size))
                for part in work(left.objects, number):
                    failed += part["failed"]
                    check(failed)
                left = chapters.left_to_do(intent.out, number, objects)
            check(failed_before + left.failed)
            model_ids = [model.model_id for model in intent.models]
            chapter = chapters.commit(intent.checkpoint, intent.out, number, objects, model_ids)
            failed_before += chapter.counts.failed


_Work = Callable[[pa.Table, int], Iterator[dict[str, int]]]  # objects and their chapter to parts, as they are written


@contextmanager
def _at_work(
    intent: Plan, done: int, failed: int, address: str | None, num_cpus: int | None, batch_size: int | None
) -> Iterator[_Work]:
    """Ray, and what scores objects on it."""
    if done:
        log.info("Continuing: %d of %d objects are done.", done, intent.objects)
    with session(address, num_cpus=num_cpus) as has, data_context(has):
        resources = plan(has.nodes, batch_size, intent.objects - done)
        log.info(
            "Scoring %d objects: %d actor(s) of %g CPUs and %g GPUs, batches of %d.",
            intent.objects - done,
            resources.actors,
            resources.actor_cpus,
            resources.actor_gpus,
            resources.batch_size,
        )
        tally = messages.tally()
        with (
            ScanProgress(intent.objects, done, failed) as progress,
            messages.watching(tally, progress.update, progress.every_s),
        ):
            yield partial(_parts, intent=intent, resources=resources, tally=tally)


def _parts(left: pa.Table, chapter: int, *, intent: Plan, resources: Resources, tally: Any) -> Iterator[dict[str, int]]:
    return dataset.follow(
        _pipeline(left, intent, resources, tally),
        partial(write_part, run_uri=intent.out, run_id=intent.run_id, chapter=chapter, models=intent.uses),
        rows=part_rows(intent, resources),
        tasks=resources.actors,  # more parts than actors never come at once
        num_cpus=resources.write_cpus,
    )


def part_rows(intent: Plan, resources: Resources) -> int:
    """Objects of one part: a hundredth of the run, so few that all of their heatmaps fit into PART_BYTES.

    Whole blocks, as they come from the actors: of a block that is cut, the rest becomes a part of its own.
    """
    policies = [intent.policies[use.policy] for use in intent.uses]
    fit = PART_BYTES // sum(2 * policy.height_px * policy.width_px for policy in policies)
    rows = min(intent.objects // PARTS_AT_LEAST, fit, MAX_PART_OBJECTS)
    unit = resources.block_rows if rows >= resources.block_rows else resources.batch_size
    return max(1, rows // unit) * unit


def block_rows(left: int, resources: Resources) -> int:
    """Objects of one fetch-and-decode task, with so many left in the chapter: a small run, too, keeps every CPU busy."""
    return min(resources.block_rows, max(1, -(-left // 8)))


def _pipeline(left: pa.Table, intent: Plan, resources: Resources, tally: Any) -> ray.data.Dataset:
    slices = dataset.SliceSource(left, block_rows(left.num_rows, resources))
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
            "uris": [model.uri for model in intent.models],
            "uses": intent.uses,
            "policies": intent.policies,
            "batch_size": resources.batch_size,
            "amp": intent.amp,
            "tally": tally,
        },
        batch_size=resources.call_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=resources.actors),
        num_cpus=resources.actor_cpus,
        num_gpus=resources.actor_gpus,
    )


_decoder: GuardedDecoder | None = None


class _WorkersDecoder:
    """The worker process's own decoder child, kept between tasks: starting one costs many decodes."""

    def decode_each(self, data: bytes, policies: Sequence[PixelPolicy], limits: Limits) -> list[Decoded]:
        global _decoder
        if _decoder is None:
            _decoder = GuardedDecoder()  # its child ends with this process
        return _decoder.decode_each(data, policies, limits)


def _fetch(manifest: pa.Table, policies: Sequence[PixelPolicy], limits: Limits, identifiers: Identifiers) -> pa.Table:
    return prepare_objects(manifest, policies, limits, _WorkersDecoder(), identifiers)


class _ScoringActor:
    """Loads the models by their paths and checks that they are those the run was planned with."""

    def __init__(
        self,
        uris: list[str],
        uses: Sequence[ModelUse],
        policies: Sequence[PixelPolicy],
        batch_size: int,
        amp: bool,
        tally: Any,
    ) -> None:
        self._policies = policies
        self._tally = tally
        self._metrics = ScanMetrics()
        self._models: list[tuple[Scorer, ModelUse]] = []
        self._refused: Exception | None = None
        try:
            self._models = [_ready(uri, use, batch_size, amp) for uri, use in zip(uris, uses, strict=True)]
        except (RetroscanError, storage.StorageError) as error:
            # What a constructor raises reaches the driver as text, what a call raises as itself.
            self._refused = error

    def __call__(self, prepared: pa.Table) -> pa.Table:
        if self._refused is not None:
            raise self._refused
        started = time.perf_counter()
        scored = score_objects(prepared, self._policies, self._models)
        self._report(prepared, time.perf_counter() - started)
        return scored

    def _report(self, prepared: pa.Table, seconds: float) -> None:
        """Tell the terminal and Prometheus what was done: numbers and codes, never whose images they were."""
        columns = ["error_code", "bytes", "fetch_ms", "decode_ms", "frames"]
        counts: Counter[str] = Counter()
        for row in prepared.select(columns).to_pylist():
            code, frames = row["error_code"], len(row["frames"])
            counts.update(objects=1, frames=frames, failed=int(status_of(code) == FAILED))
            self._metrics.object(code or SCORED, row["bytes"])
            self._metrics.took("fetch", row["fetch_ms"] / 1e3)
            if row["decode_ms"] is not None:
                self._metrics.took("decode", row["decode_ms"] / 1e3)
        if counts["frames"]:
            for _ in range(counts["frames"]):
                self._metrics.took("score", seconds / counts["frames"])
        self._tally.add.remote(dict(counts))


def _ready(uri: str, use: ModelUse, batch_size: int, amp: bool) -> tuple[Scorer, ModelUse]:
    """The model at `uri`, ready to score; raises JobError where it is no longer the one the run was planned with."""
    from ad_jobs.scoring.scorer import Scorer

    model = storage.patiently(partial(open_model, uri))
    if model.model_id != use.judgement.model_id:
        raise JobError(
            f"The model at {uri} changed while the scan ran: {use.judgement.model_id} before, {model.model_id} now.",
            "Restore it, and run the same command again.",
        )
    return Scorer(model.detector, batch_size=batch_size, threads=1, amp=amp), use


@contextmanager
def _errors_of_ray() -> Iterator[None]:
    """What Ray raises inside the block, as an error of the scan."""
    try:
        yield
    except ClusterError as error:
        raise JobError(error.problem, error.remedy) from error
    except RayError as error:
        raise _of_workers(error) from error


def _of_workers(error: RayError) -> RetroscanError:
    """What a worker raised on purpose, or that the workers failed."""
    for one in _chain(error):
        if isinstance(one, RetroscanError):
            return one
        if isinstance(one, storage.Full):
            return JobError(f"No room is left for the run: {one}.", "Make room, and run the same command again.")
        if isinstance(one, storage.StorageError):
            return JobError(f"The store failed: {one}.", "Mend it, and run the same command again: it continues.")
    *_, last = _chain(error)
    lines = str(last).strip().splitlines()
    return JobError(
        f"The scan's workers failed: {type(last).__name__}: {lines[-1] if lines else 'no message'}.",
        "Run the same command again: it continues from here.",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it came from, innermost last: Ray wraps a worker's error several times over."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = getattr(found, "cause", None) or found.__cause__
