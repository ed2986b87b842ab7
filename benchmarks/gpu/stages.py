"""What all stages share: the device, the pack, sizes, results that outlive a cut run, and time."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.pictures import WEIGHTS

# Of images where the code is tried; FYD takes no smaller ones.
SMALL_PX = 64


@dataclass(frozen=True)
class Bench:
    """Where and how large the measurements are."""

    pack: Path
    results: Path
    device: str
    # Seconds instead of minutes: tiny images, few of them, to try the code.
    small: bool
    # Of detectors; all, if it is empty.
    kinds: tuple[str, ...] = ()

    def chosen(self, kinds: Iterable[str]) -> list[str]:
        """Those of the kinds that are to be measured."""
        return [kind for kind in kinds if not self.kinds or kind in self.kinds]

    @property
    def weights(self) -> str:
        """The file of EfficientNet-Lite0's weights."""
        return str(self.pack / WEIGHTS)

    def size_px(self, wanted: int) -> int:
        """The side of the images to measure with."""
        return min(wanted, SMALL_PX) if self.small else wanted

    def write(self, stage: str, **found: Any) -> None:
        """Append one result, and print it."""
        line = json.dumps({"stage": stage, **found})
        with self.results.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def guard(self, stage: str, what: Callable[[], Any], **about: Any) -> bool:
        """Whether `what` ended well; its error becomes a result, so that other measurements go on."""
        try:
            what()
        # Whatever a detector, a card or a compiler raises.
        except Exception as error:  # noqa: BLE001
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error}"[:600]
            self.write(stage, **about, error=f"{text} ({Path(last.filename).name}:{last.lineno})")
            return False
        return True


class Clock:
    """A deadline, and fair shares of the time until then."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    def left(self) -> float:
        """Seconds; below zero after the end."""
        return self._end - time.perf_counter()

    def share(self, parts: int) -> Clock:
        """The clock of the next of so many parts."""
        return Clock(self.left() / parts)
