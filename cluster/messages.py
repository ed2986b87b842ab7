"""From workers to the user's terminal while they work: lines of text, and running totals."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

# How often new lines are asked for.
POLL_S = 2.0


def board() -> Any:
    """The handle of a new board, for a worker to `say.remote(line)` to."""
    return ray.remote(num_cpus=0)(_Board).remote()


class _Board:
    """The actor that holds the lines."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def say(self, line: str) -> None:
        self._lines.append(line)

    def since(self, first: int) -> list[str]:
        return self._lines[first:]


@contextmanager
def listening(board: Any, log: logging.Logger) -> Iterator[None]:
    """Log the board's lines as they come, for the length of the block."""
    seen = 0

    def show(lines: list[str]) -> None:
        nonlocal seen
        for line in lines:
            log.info("%s", line)
        seen += len(lines)

    with _asking(lambda: board.since.remote(seen), show, POLL_S):
        yield


def tally() -> Any:
    """The handle of new totals, for workers to `add.remote({"name": number})` to."""
    return ray.remote(num_cpus=0, max_restarts=-1)(_Tally).remote()


class _Tally:
    """The actor that adds up."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int]) -> None:
        self._totals.update(counts)

    def totals(self) -> dict[str, int]:
        return dict(self._totals)


@contextmanager
def watching(tally: Any, show: Callable[[dict[str, int]], None], every_s: float) -> Iterator[None]:
    """Call `show` with the totals every so often, and once at the end, for the length of the block."""
    with _asking(lambda: tally.totals.remote(), show, every_s):
        yield


@contextmanager
def _asking(ask: Callable[[], Any], show: Callable[[Any], None], every_s: float) -> Iterator[None]:
    done = threading.Event()

    def listen() -> None:
        last = False
        while not last:
            last = done.wait(every_s)
            try:
                answer = ray.get(ask(), timeout=POLL_S)
            except (RayError, TimeoutError):
                # A busy or dying cluster: it is shown later, or the job's own error is.
                continue
            show(answer)

    listener = threading.Thread(target=listen, name="board", daemon=True)
    listener.start()
    try:
        yield
    finally:
        done.set()
        listener.join()
