"""How many frames are scored at once, where nobody says: as many as take least, by the first batches.

One image at a time fits into a core's caches, many share what is read of the weights: which counts for more hangs on
the detector, its size and the machine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger("retroscan.score")

Frame = TypeVar("Frame")

# Sizes that are tried on a CPU.
CANDIDATES = (32, 8, 1)
# The first of a size also pays for its memory.
ROUNDS = 2


class BatchSize:
    """The frames of the next batch.

    Args:
        candidates: tried in this order, each ROUNDS times; the one that took least stays. A single one is not tried.
    """

    def __init__(self, *candidates: int) -> None:
        self.now = candidates[0]
        self._left = [size for size in candidates for _ in range(ROUNDS)] if len(candidates) > 1 else []
        # Seconds a frame, the least of the rounds.
        self._least: dict[int, float] = {}

    @classmethod
    def measured(cls, at_most: int) -> BatchSize:
        """`at_most`, or fewer where they are faster."""
        return cls(at_most, *(size for size in CANDIDATES if size < at_most))

    def took(self, frames: int, seconds: float) -> None:
        """Count in a batch. One that is not full, as the last of a call may be, says nothing."""
        if not self._left or frames != self.now:
            return
        self._least[frames] = min(seconds / frames, self._least.get(frames, float("inf")))
        self._left.pop(0)
        if self._left:
            self.now = self._left[0]
            return
        self.now = min(self._least, key=self._least.__getitem__)
        times = ", ".join(f"{size} at once {1e3 * spent:.1f} ms" for size, spent in self._least.items())
        log.info("Batches of %d: an image takes with %s.", self.now, times)

    def batches(self, frames: Iterable[Frame]) -> Iterator[list[Frame]]:
        """The frames in order, as many at once as it then is; the last ones may be fewer."""
        batch: list[Frame] = []
        for frame in frames:
            batch.append(frame)
            if len(batch) >= self.now:
                yield batch
                batch = []
        if batch:
            yield batch
