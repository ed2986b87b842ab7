"""What a command costs: its seconds, the machine's CPU-seconds, and the memory of its processes."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import psutil

POLL_S = 0.5


class Peaks(NamedTuple):
    """The most that processes held for themselves (resident, without what they share), in MiB."""

    driver: int = 0  # the command's own process
    largest: int = 0  # any one process below it
    total: int = 0  # all of them at one moment

    def or_more(self, other: Peaks) -> Peaks:
        """The larger of each."""
        return Peaks(*map(max, self, other))


class Cost(NamedTuple):
    """A command that ended well: its stdout, and what it cost."""

    output: str
    seconds: float
    cpu_s: float  # of the whole machine while it ran
    peaks: Peaks


def cost_of(command: Sequence[str]) -> Cost:
    """Run a command to its end, watched; SystemExit with the end of its stderr where it fails."""
    before, start = busy_s(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = [Peaks()]
    watcher = threading.Thread(target=_watch, args=(process, found), daemon=True)
    watcher.start()
    output, errors = process.communicate()
    spent = Cost(output, time.perf_counter() - start, busy_s() - before, found[0])
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}: {errors[-2000:]}")
    return spent._replace(peaks=found[0])


def busy_s() -> float:
    """CPU-seconds that the machine has worked since its start."""
    spent = psutil.cpu_times()
    return float(spent.user + spent.system + spent.nice)


def _watch(process: subprocess.Popen[str], found: list[Peaks]) -> None:
    """Keep the peaks of a process and of all below it until it ends."""
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        held = [_own_mib(member) for member in family]
        found[0] = found[0].or_more(Peaks(held[0], max(held[1:], default=0), sum(held)))
        time.sleep(POLL_S)


def _own_mib(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return (memory.rss - memory.shared) >> 20
