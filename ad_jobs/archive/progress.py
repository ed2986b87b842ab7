"""How far a verb is that goes through many things one by one: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_EVERY_S = 60.0


class Watch:
    """Tells on stderr how many of `count` things are through; `what` they are. A context manager."""

    def __init__(self, count: int, what: str, log: logging.Logger) -> None:
        self._count, self._what, self._log = count, what, log
        self._through = 0
        self._told = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns = (TextColumn(self._what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self._what, total=self._count)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, number: int = 1) -> None:
        """So many more are through."""
        self._through += number
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], number)
        elif (now := time.monotonic()) - self._told >= LOG_EVERY_S:
            self._log.info("%d of %d %s.", self._through, self._count, self._what)
            self._told = now
