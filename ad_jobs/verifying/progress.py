"""How far a verification is."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ad_jobs.archive.progress import Watch

log = logging.getLogger("retroscan.verify")

Item = TypeVar("Item")


def watched(items: Iterable[Item], count: int, what: str) -> Iterator[Item]:
    """The items, `count` of them, as they come; meanwhile it is told on stderr how many of `what` are through."""
    with Watch(count, what, log) as watch:
        for item in items:
            yield item
            watch.advance()
