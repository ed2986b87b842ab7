"""How far a verification is: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("retroscan.verify")

LOG_EVERY_S = 60.0

Item = TypeVar("Item")


def watched(items: Iterable[Item], count: int, what: str) -> Iterator[Item]:
    """The items, `count` of them, as they come; meanwhile it is told on stderr how many of `what` are through."""
    if sys.stderr.isatty():
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            yield from bar.track(items, total=count)
        return
    told = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        if (now := time.monotonic()) - told >= LOG_EVERY_S:
            log.info("%d of %d %s.", number, count, what)
            told = now
