"""How far a scan is: a bar on a terminal, a line a minute in a log. Totals only: never a name, a URI or a UID."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

from rich.progress import TextColumn

from ad_jobs.archive.progress import LOG_EVERY_S, OnTerminal
from cluster.counting import counted

log = logging.getLogger("retroscan.scan")

TERMINAL_EVERY_S = 1.0
# Images per second are those of the last two minutes.
RATE_OVER_S = 120.0


class State(NamedTuple):
    """A moment of a scan: objects in all, done and failed; frames per second; seconds left, None if not known."""

    objects: int
    done: int
    failed: int
    images_per_s: float
    left_s: float | None

    def __str__(self) -> str:
        left = "?" if self.left_s is None else str(timedelta(seconds=round(self.left_s)))
        return (
            f"{self.done:,} of {counted(self.objects, 'object', spec=',')} done, {self.objects - self.done:,} left, "
            f"{self.failed:,} failed; "
            f"{self.images_per_s:.1f} images/s; {left} left"
        )


class ScanProgress(OnTerminal):
    """Shows what `update` is told, from `start` (done, failed) of an earlier call on. A context manager."""

    def __init__(self, objects: int, done: int = 0, failed: int = 0) -> None:
        super().__init__("scan", TextColumn("{task.fields[state]}"), total=objects, done=done)
        self._start = (done, failed)
        self._seen: deque[tuple[float, int, int]] = deque([(time.monotonic(), 0, 0)])
        self.every_s = TERMINAL_EVERY_S if sys.stderr.isatty() else LOG_EVERY_S

    def state(self, totals: Mapping[str, int], now: float) -> State:
        """What the totals (`objects`, `failed`, `frames`, since the start) mean at the time `now`, in seconds."""
        objects, frames = totals.get("objects", 0), totals.get("frames", 0)
        self._seen.append((now, objects, frames))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RATE_OVER_S:
            self._seen.popleft()
        then, objects_then, frames_then = self._seen[0]
        passed = max(now - then, 1e-9)
        # Objects that were scored again, after a worker was lost, count twice here; the table has them once.
        done = min(self._total, self._start[0] + objects)
        rate = (objects - objects_then) / passed
        return State(
            self._total,
            done,
            self._start[1] + totals.get("failed", 0),
            (frames - frames_then) / passed,
            (self._total - done) / rate if rate > 0 else None,
        )

    def update(self, totals: dict[str, int]) -> None:
        """Show the totals so far."""
        state = self.state(totals, time.monotonic())
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.done, state=str(state))
        else:
            log.info("%s", state)
