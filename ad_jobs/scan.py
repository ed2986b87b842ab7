"""`retroscan scan`: an archive and a model in, a table of scores out. Streaming, resumable, on Ray Data.

Chapter after chapter (see `scanning.chapters`).
Run again, the same command continues where it stopped: what is in a part is not done again.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pyarrow as pa

from ad_jobs.archive.manifest import RowReader
from ad_jobs.deciding.proportion import out_of_proportion
from ad_jobs.errors import TooManyFailed
from ad_jobs.results.run import RunRecord
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.results.seal import signing_key
from ad_jobs.scanning import chapters, run_state
from ad_jobs.scanning.chapters import Chapter
from ad_jobs.scanning.intent import Intent, resolve
from ad_jobs.scanning.pipeline import Work, at_work, errors_of_ray, refuse_amp_without_gpu
from ad_jobs.scanning.stages import MANIFEST_COLUMNS
from ad_jobs.specs import ScanSpec, takes
from cluster.counting import counted
from cluster.session import session
from cluster.storage.lease import Lease

log = logging.getLogger("retroscan.scan")


@takes(ScanSpec)
def scan(spec: ScanSpec) -> RunRecord:
    """The record of the finished run in `spec.out`, whose table has every object of `spec.source`.

    A source that is no manifest is indexed, once: into `manifest_out`, by default `out`/manifest, and with hashed
    identifiers `out`.manifest.
    Each object is fetched and decoded once for all models.
    With `since`, objects that an earlier run has are left out; where that has all of them, the run is an empty one.
    The same call again continues an interrupted run, or returns a finished one.
    A model whose flags are out of all proportion to what its threshold promised is warned of in the log.

    Raises:
        UsageError: refused before any work: a rule broken, the value, the remedy.
        JobError: the workers failed, or the table does not balance; what is done is kept.
        TooManyFailed: more than `max_failed` of the objects failed; the run is unfinished, what is done is kept.
    """
    started = time.monotonic()
    key = signing_key(spec.key)
    intent = resolve(spec)
    if intent.undecided:
        log.warning(
            "%d of %s left out because --where is NULL for them: a column it names has no value there, as "
            "those of the header where there is none.",
            intent.undecided,
            counted(intent.manifest.objects, "object is", "objects are"),
        )
    if intent.parent is not None:
        log.info(
            "%d of %s as run %s has them, and left out; %d left%s%s.",
            intent.already,
            counted(intent.manifest.objects, "object is", "objects are"),
            intent.parent.run_id,
            intent.objects,
            f", {intent.parent.retried} of which failed there" if intent.parent.retried else "",
            f", {intent.parent.widened} of which were out of a domain there that is wider now"
            if intent.parent.widened
            else "",
        )
    record = run_state.finished(intent)
    if record is not None:
        log.info("The run in %s is finished already.", spec.out)
    else:
        with errors_of_ray(), ExitStack() as stack:
            # Before the folder is this run's: without --amp it will be another.
            if spec.amp:
                refuse_amp_without_gpu(stack.enter_context(session(spec.address, num_cpus=spec.num_cpus)))
            lease = stack.enter_context(run_state.writing(intent))
            # By the one who had the folder until now.
            record = run_state.look(intent)
            if record is None:
                run_state.begin(intent)
                _score_what_is_left(intent, lease)
                record = run_state.close(intent, key)
    counts = record.counts
    log.info(
        "%d scored + %d failed + %d skipped = %d %s; %s, %d flagged, %.1f s",
        counts.scored,
        counts.failed,
        counts.skipped,
        counts.objects,
        "in the manifest" if intent.selection is None else f"selected of {intent.manifest.objects}",
        counted(counts.rows, "row"),
        counts.flagged,
        time.monotonic() - started,
    )
    for found in out_of_proportion(ScoreTable(spec.out, record), spec.out, record):
        log.warning("%s", found.text)
    # A finished run, asked for again under a stricter rule.
    if counts.failed > spec.max_failed * counts.objects:
        raise TooManyFailed(counts.failed, counts.objects, spec.max_failed)
    return record


def _score_what_is_left(intent: Intent, lease: Lease) -> None:
    """Score what is left of every chapter; all of them are committed when this returns.

    While a chapter is scored, the one before it is counted, hashed and committed.
    """
    committed = chapters.committed(intent.checkpoint, intent.spec.out)
    done = sum(chapter.counts.objects for chapter in committed.values())
    failed = {number: chapter.counts.failed for number, chapter in committed.items()}
    manifest = RowReader(intent.manifest)
    engines: frozenset[str] = frozenset()

    def check() -> None:
        lease.check()
        if sum(failed.values()) > intent.spec.max_failed * intent.objects:
            raise TooManyFailed(sum(failed.values()), intent.objects, intent.spec.max_failed)

    def settle(ending: tuple[int, Future[Chapter | None]] | None) -> None:
        """Wait for the end of a chapter."""
        if ending is None:
            return
        number, chapter = ending[0], ending[1].result()
        if chapter is not None:
            committed[number] = chapter
            failed[number] = chapter.counts.failed

    with ThreadPoolExecutor(1, "commit") as committing, ExitStack() as stack:
        work: Work | None = None
        # More than once only where another process, thought dead, wrote a part meanwhile, or one was damaged.
        while waiting := [number for number in range(intent.chapters) if number not in committed]:
            ending = None
            for number in waiting:
                objects = manifest.rows(intent.ids(number), MANIFEST_COLUMNS)
                left = chapters.left_to_do(intent.spec.out, intent.run_id, number, objects)
                failed[number] = left.failed
                check()
                if work is None:
                    done += objects.num_rows - left.objects.num_rows
                if left.objects.num_rows:
                    # Ray starts only if there is work.
                    if work is None:
                        work = stack.enter_context(at_work(intent, done, sum(failed.values())))
                    for part in work(left.objects, number):
                        failed[number] += part["failed"]
                        engines = run_state.note_engines(intent.spec.out, engines, part["engines"])
                        check()
                settle(ending)
                ending = number, committing.submit(_commit, intent, lease, number, objects)
            settle(ending)


def _commit(intent: Intent, lease: Lease, number: int, objects: pa.Table) -> Chapter | None:
    """A chapter of these objects, committed; None if something is left of it to do."""
    out, run_id = intent.spec.out, intent.run_id
    lease.check()
    if chapters.left_to_do(out, run_id, number, objects).objects.num_rows:
        return None
    model_ids = [model.model_id for model in intent.models]
    return chapters.commit(intent.checkpoint, out, run_id, number, objects, model_ids)
