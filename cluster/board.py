"""Lines from a worker to the user's terminal, as they come: Ray Train's workers have no way there of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

POLL_S = 2.0  # how often new lines are asked for


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
    done = threading.Event()

    def listen() -> None:
        seen = 0
        while True:
            last = done.wait(POLL_S)
            try:
                lines = ray.get(board.since.remote(seen), timeout=POLL_S)
            except (
                RayError,
                TimeoutError,
            ):  # a busy or dying cluster: the lines come later, or the fit's own error does
                lines = []
            for line in lines:
                log.info("%s", line)
            seen += len(lines)
            if last:
                return

    listener = threading.Thread(target=listen, name="fit-progress", daemon=True)
    listener.start()
    try:
        yield
    finally:
        done.set()
        listener.join()
