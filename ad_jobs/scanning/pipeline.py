"""How Ray runs a scan: the one module of the jobs that speaks to Ray Data.

    manifest slices -> fetch + decode (CPU tasks) -> detector (actor pool) -> heatmap shards + Parquet parts (tasks)

What a stage does to its rows stands in `stages` and `table`.
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
from ray.data.exceptions import ExecutionTimeoutError

from ad_jobs.archive.fetching import status_of
from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.errors import JobError, RetroscanError
from ad_jobs.images.domain import Taker
from ad_jobs.images.guard import HEADER_TIMEOUT_S, of_this_process
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scanning.intent import Intent
from ad_jobs.scanning.judgement import ModelUse
from ad_jobs.scanning.progress import ScanProgress
from ad_jobs.scanning.stages import prepare_objects, score_objects
from ad_jobs.scanning.table import write_part
from ad_jobs.schema import FAILED, SCORED
from ad_jobs.scoring.model_store import open_model
from cluster import dataset, messages, storage
from cluster.counting import counted
from cluster.division import USUAL_SCORE_MS, ScanDivision, divide_for_scan
from cluster.errors import ClusterError
from cluster.failures import failures
from cluster.metrics import ScanMetrics
from cluster.pool import LastingPool, lasting_pool
from cluster.session import Session, data_context, session

# Torch stands behind it; driver and fetching workers do without.
if TYPE_CHECKING:
    from ad_jobs.scoring.scorer import Scorer

log = logging.getLogger("retroscan.scan")

# Of uncompressed heatmaps one writing task may come to hold, were all of them kept.
PART_BYTES = 256 << 20
MAX_PART_OBJECTS = 20_000
# Between an object that cost the decoder's process its life and the next: on a busy machine.
RESTART_S = 5.0
# Of a large run: a killed driver loses at most what is not yet in a part.
PARTS_AT_LEAST = 100

# Objects and their chapter to parts, as they are written.
Work = Callable[[pa.Table, int], Iterator[dict[str, Any]]]


@contextmanager
def at_work(intent: Intent, done: int, failed: int) -> Iterator[Work]:
    """Ray, and what scores objects on it."""
    if done:
        log.info("Continuing: %d of %s done.", done, counted(intent.objects, "object"))
    spec = intent.spec
    with ExitStack() as stack:
        has = stack.enter_context(session(spec.address, num_cpus=spec.num_cpus))
        division = divide_for_scan(
            has.nodes, spec.batch_size, intent.objects - done, intent.score_ms, intent.object_bytes
        )
        context = stack.enter_context(data_context(has, task_s=slowest_block_s(intent.limits, division)))
        pool = stack.enter_context(lasting_pool(context, division.actors))
        log.info(
            "Scoring %s: %s of %s and %s, batches of %s%d; %s of CPU to score an object.",
            counted(intent.objects - done, "object"),
            counted(division.actors, "actor"),
            counted(division.actor_cpus, "CPU", spec="g"),
            counted(division.actor_gpus, "GPU", spec="g"),
            "" if spec.batch_size or division.actor_gpus else "up to ",
            division.batch_size,
            f"{USUAL_SCORE_MS:.0f} ms (not measured)" if intent.score_ms is None else f"{intent.score_ms:.0f} ms",
        )
        progress = stack.enter_context(ScanProgress(intent.objects, done, failed))
        tally = None
        # Another process: of a single part there is nothing to tell before its end.
        if intent.objects - done > part_rows(intent, division):
            tally = messages.tally()
            stack.enter_context(messages.watching(tally, progress.update, progress.every_s))
        yield partial(_parts, intent=intent, division=division, tally=tally, pool=pool)


def _parts(
    left: pa.Table, chapter: int, *, intent: Intent, division: ScanDivision, tally: Any, pool: LastingPool
) -> Iterator[dict[str, Any]]:
    return dataset.follow(
        _pipeline(left, intent, division, tally, pool),
        partial(write_part, run_uri=intent.spec.out, run_id=intent.run_id, chapter=chapter, models=intent.uses),
        rows=part_rows(intent, division),
        # More parts than actors never come at once.
        tasks=division.actors,
        num_cpus=division.write_cpus,
    )


def part_rows(intent: Intent, division: ScanDivision) -> int:
    """Objects of one part: a hundredth of the run, so few that all of their heatmaps fit into PART_BYTES.

    Whole blocks, as they come from the actors: of a block that is cut, the rest becomes a part of its own.
    """
    rows = min(intent.objects // PARTS_AT_LEAST, PART_BYTES // intent.heatmap_bytes, MAX_PART_OBJECTS)
    unit = division.block_rows if rows >= division.block_rows else min(division.batch_size, division.block_rows)
    return max(1, rows // unit) * unit


def block_rows(left: int, division: ScanDivision) -> int:
    """Objects of one fetch-and-decode task, with so many left in the chapter.

    A small run, too, keeps every CPU busy.
    """
    return min(division.block_rows, max(1, -(-left // 8)))


def slowest_block_s(limits: Limits, division: ScanDivision) -> float:
    """How long a fetch-and-decode task takes at most whose objects all run into their limits, each on a new child.

    That is the one of its pixels, and of its header once more.
    """
    return division.block_rows * (limits.timeout_s + min(limits.timeout_s, HEADER_TIMEOUT_S) + 2 * RESTART_S)


def _pipeline(
    left: pa.Table, intent: Intent, division: ScanDivision, tally: Any, pool: LastingPool
) -> ray.data.Dataset:
    slices = dataset.SliceSource(left, block_rows(left.num_rows, division))
    # Reading and fetching have equal resources, so that Ray makes one task of them; scoring has others.
    fetched = ray.data.read_datasource(
        slices, override_num_blocks=slices.tasks, num_cpus=division.fetch_cpus
    ).map_batches(
        partial(
            _fetch,
            policies=intent.policies,
            limits=intent.limits,
            identifiers=intent.identifiers,
            takers=[Taker(use.policy, use.domain) for use in intent.uses],
            within=intent.manifest.root,
        ),
        # The slice; a number, even the same one, would keep Ray from fusing.
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=division.fetch_cpus,
    )
    return pool.map_batches(
        fetched,
        _ScoringActor,
        fn_constructor_kwargs={
            "uris": [model.uri for model in intent.models],
            "uses": intent.uses,
            "policies": intent.policies,
            "batch_size": intent.spec.batch_size,
            "at_most": division.batch_size,
            "amp": intent.spec.amp,
            "tally": tally,
        },
        batch_size=division.call_rows,
        batch_format="pyarrow",
        num_cpus=division.actor_cpus,
        num_gpus=division.actor_gpus,
    )


def _fetch(
    manifest: pa.Table,
    policies: Sequence[PixelPolicy],
    limits: Limits,
    identifiers: Identifiers,
    takers: Sequence[Taker],
    within: str | None,
) -> pa.Table:
    return prepare_objects(manifest, policies, limits, of_this_process(), identifiers, takers, within)


class _ScoringActor:
    """Loads the models by their paths and checks that they are those the run was planned with."""

    def __init__(
        self,
        uris: list[str],
        uses: Sequence[ModelUse],
        policies: Sequence[PixelPolicy],
        batch_size: int | None,
        at_most: int,
        amp: bool,
        tally: Any,
    ) -> None:
        self._policies = policies
        self._tally = tally
        self._metrics = ScanMetrics()
        self._models: list[tuple[Scorer, ModelUse]] = []
        self._refused: Exception | None = None
        try:
            self._models = [_ready(uri, use, batch_size, at_most, amp) for uri, use in zip(uris, uses, strict=True)]
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
        if self._tally is not None:
            self._tally.add.remote(dict(counts))


def _ready(uri: str, use: ModelUse, batch_size: int | None, at_most: int, amp: bool) -> tuple[Scorer, ModelUse]:
    """The model at `uri`, ready to score; raises JobError where it is no longer the one the run was planned with."""
    from ad_jobs.scoring.scorer import Scorer

    model = storage.patiently(partial(open_model, uri))
    if model.model_id != use.judgement.model_id:
        raise JobError(
            f"The model at {uri} changed while the scan ran: {use.judgement.model_id} before, {model.model_id} now.",
            "Restore it, and run the same command again.",
        )
    scorer = Scorer(
        model.detector, tiles=model.policy.tiles, batch_size=batch_size, at_most=at_most, threads=1, amp=amp
    )
    return scorer, use


@contextmanager
def errors_of_ray() -> Iterator[None]:
    """What Ray raises inside the block, as an error of the scan."""
    try:
        with failures("scan", RetroscanError, storage.StorageError):
            yield
    except ClusterError as error:
        raise JobError(error.problem, error.remedy) from error
    except storage.Full as error:
        raise JobError(
            f"No room is left for the run: {error}.", "Make room, and run the same command again."
        ) from error
    except storage.StorageError as error:
        raise JobError(
            f"The store failed: {error}.", "Mend it, and run the same command again: it continues."
        ) from error
    except ExecutionTimeoutError as error:
        raise JobError(
            f"The scan stalled: {str(error).partition('. ')[0]}.",
            "Look whether its workers live, and run the same command again: it continues.",
        ) from error


def refuse_amp_without_gpu(has: Session) -> None:
    """Raise UsageError where a scan with `amp` would find no GPU."""
    if has.gpus < 1:
        from ad_jobs.scoring.scorer import no_gpu_for_amp

        raise no_gpu_for_amp(
            f"a cluster of {counted(has.cpus, 'CPU', spec='g')} and {counted(has.gpus, 'GPU', spec='g')}"
        )
