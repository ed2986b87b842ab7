"""What has been said of a run so far, by this reviewer and by others at work at the same time."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ad_jobs.reviewing.verdicts import Verdict, add, files, noted, read_files, standing, withdrawal

# Between two looks at what others wrote; longer where a look takes long.
REFRESH_S = 2.0
REFRESH_SHARE = 10


class Ledger:
    """All verdicts of a run. Threads may share one.

    A verdict is in the run's folder before `say` or `undo` returns.
    """

    def __init__(self, run_uri: str, reviewer: str, decision_id: str | None) -> None:
        self._run_uri, self.reviewer, self._decision_id = run_uri, reviewer, decision_id
        self._lock = threading.RLock()
        self._read: set[str] = set()
        self._all: list[Verdict] = []
        self._of: dict[tuple[int, int], list[Verdict]] = {}
        # Rises with every change.
        self.version = 0
        self._next_look = 0.0
        self.look()

    def look(self) -> None:
        """Read what others have written since, but not at every moment.

        Raises:
            JobError: a file of verdicts is damaged.
        """
        with self._lock:
            start = time.monotonic()
            if start < self._next_look:
                return
            new = [name for name in files(self._run_uri) if name not in self._read]
            if new or not self.version:
                known = {one.verdict_id for one in self._all}
                self._all += [one for one in read_files(self._run_uri, new) if one.verdict_id not in known]
                self._read.update(new)
                self._changed()
            end = time.monotonic()
            self._next_look = end + max(REFRESH_S, REFRESH_SHARE * (end - start))

    def say(self, row: Mapping[str, Any], verdict: str) -> Verdict:
        """Note a verdict of this reviewer on a frame.

        Raises:
            UsageError: it is no verdict.
            StorageError: it could not be written, and is not noted.
        """
        with self._lock:
            one = noted(row, self.reviewer, verdict, self._decision_id)
            self._add(one)
            return one

    def undo(self) -> Verdict | None:
        """Take back what this reviewer said last and has not taken back; None where there is nothing.

        Raises:
            StorageError: it could not be written, and stands.
        """
        with self._lock:
            mine = [one for one in standing(self._all) if one.reviewer == self.reviewer]
            if not mine:
                return None
            last = max(mine, key=lambda one: (one.noted_at, one.verdict_id))
            self._add(withdrawal(last))
            return last

    def of(self, object_id: int, frame: int) -> list[Verdict]:
        """The standing verdicts on a frame, by reviewer."""
        with self._lock:
            return list(self._of.get((object_id, frame), ()))

    def standing(self) -> list[Verdict]:
        """All standing verdicts."""
        with self._lock:
            return [one for of_frame in self._of.values() for one in of_frame]

    def _add(self, verdict: Verdict) -> None:
        name = add(self._run_uri, [verdict]).rpartition("/")[2]
        self._read.add(name)
        self._all.append(verdict)
        self._changed()

    def _changed(self) -> None:
        self._all.sort(key=lambda one: (one.noted_at, one.verdict_id))
        of: dict[tuple[int, int], list[Verdict]] = defaultdict(list)
        for one in standing(self._all):
            of[one.key].append(one)
        self._of = dict(of)
        self.version += 1
