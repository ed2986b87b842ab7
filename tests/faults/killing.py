"""Scans in processes that are killed at a chosen change to the disk; they score by themselves, without Ray."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import pyarrow as pa

import ad_jobs.scan
from ad_jobs.errors import UsageError
from ad_jobs.images.decode import Decoded, decode_each
from ad_jobs.images.domain import Taker
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scanning.intent import Intent
from ad_jobs.scanning.stages import prepare_objects, score_objects
from ad_jobs.scanning.table import write_part
from ad_jobs.scoring.model_store import open_model
from ad_jobs.scoring.scorer import Scorer

# Objects of a part, and of a chapter.
PART, CHAPTER = 3, 8
# What a second scan ends with that finds a first one.
REFUSED = 2
# What changes the disk, as the interpreter tells of it: https://docs.python.org/3/library/audit_events.html.
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
# Processes begin as a fork of one that has imported all this, and nothing else: it has no threads.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


class _Decoder:
    """A decoder in this process."""

    def decode_each(
        self, data: bytes, policies: Sequence[PixelPolicy], limits: Limits, *, takers: Sequence[Taker] = ()
    ) -> list[Decoded]:
        return decode_each(data, policies, limits, takers=takers)


@contextmanager
def _at_work(intent: Intent, *_: int) -> Iterator[Callable[[pa.Table, int], Iterator[dict[str, int]]]]:
    """The stages of a scan one after the other, as Ray's workers run them side by side."""
    models = [
        (Scorer(open_model(model.uri).detector, threads=1), use)
        for model, use in zip(intent.models, intent.uses, strict=True)
    ]

    def work(left: pa.Table, chapter: int) -> Iterator[dict[str, int]]:
        for start in range(0, left.num_rows, PART):
            rows = left.slice(start, PART)
            takers = [Taker(use.policy, use.domain) for use in intent.uses]
            prepared = prepare_objects(rows, intent.policies, intent.limits, _Decoder(), intent.identifiers, takers)
            scored = score_objects(prepared, intent.policies, models)
            (part,) = write_part(scored, intent.spec.out, intent.run_id, chapter, intent.uses).to_pylist()
            yield part

    yield work


def _scan(kill_at: int | None, wanted: dict[str, Any]) -> None:
    ad_jobs.scan.at_work = _at_work
    if kill_at is not None:
        _die_at(kill_at)
    try:
        ad_jobs.scan.scan(**wanted, chapter_objects=CHAPTER)
    except UsageError as error:
        # Not the interpreter's own way out: it would flush what a killed process does not.
        os._exit(REFUSED if "One scan at a time" in str(error) else 1)
    if kill_at is not None:
        # Its end as well is a moment.
        os.kill(os.getpid(), signal.SIGKILL)


def _die_at(change: int) -> None:
    """From here on this process is killed at so many-th change to the disk."""
    seen = 0

    def hook(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(details[1], str) and set(details[1]) & set("wxa+")
        if writes or event in CHANGES:
            seen += 1
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def begin(kill_at: int | None = None, **wanted: Any) -> BaseProcess:
    """A process that scans, and is killed at its `kill_at`-th change to the disk, or at its end if that comes first."""
    process = _processes.Process(target=_scan, args=(kill_at, wanted))
    process.start()
    return process


def end(process: BaseProcess) -> int | None:
    """How the process ended: 0, REFUSED, or -SIGKILL."""
    process.join()
    return process.exitcode
