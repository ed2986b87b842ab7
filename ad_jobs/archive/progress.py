"""How far a verb is that goes through many things one by one: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

LOG_EVERY_S = 60.0


class OnTerminal:
    """Has a bar on stderr while a block lasts, and none where that is no terminal. A context manager.

    Args:
        what: stands before the bar.
        columns: stand behind it; a task of theirs has the field `state`.
        total: how many things there are.
        done: how many of them are through already.
        transient: whether the bar goes with the block.
    """

    def __init__(self, what: str, *columns: ProgressColumn, total: int, done: int = 0, transient: bool = False) -> None:
        self._what, self._columns = what, columns
        self._total, self._done, self._transient = total, done, transient
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns = (TextColumn(self._what), BarColumn(), *self._columns)
            self._bar = Progress(*columns, console=Console(stderr=True), transient=self._transient)
            self._bar.add_task(self._what, total=self._total, completed=self._done, state="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class Watch(OnTerminal):
    """Tells on stderr how many of `count` things are through; `what` they are. A context manager."""

    def __init__(self, count: int, what: str, log: logging.Logger) -> None:
        super().__init__(what, MofNCompleteColumn(), TimeRemainingColumn(), total=count, transient=True)
        self._log = log
        self._through = 0
        self._told = time.monotonic()

    def advance(self, number: int = 1) -> None:
        """So many more are through."""
        self._through += number
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], number)
        elif (now := time.monotonic()) - self._told >= LOG_EVERY_S:
            self._log.info("%d of %d %s.", self._through, self._total, self._what)
            self._told = now
