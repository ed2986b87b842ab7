"""One writer at a time: a file in a folder that says who writes there, renewed as long as it does.

A process that is killed leaves its lease behind. On the same machine its death can be seen, and the next one takes the
lease at once; from elsewhere it cannot, and the next one watches for a while whether the lease is still renewed.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import storage

log = logging.getLogger(__name__)

RENEWED_EVERY_S = 20.0
WATCHED_S = 3 * RENEWED_EVERY_S  # without renewal: its holder is gone
WRITTEN_S = 2.0  # an unfinished one: its writer is gone


class Held(Exception):
    """Somebody else holds the lease: where it lies, and who that is."""

    def __init__(self, uri: str, holder: str) -> None:
        super().__init__(uri, holder)
        self.uri = uri
        self.holder = holder

    def __str__(self) -> str:
        return f"{self.uri} is held by {self.holder}"


class Lease:
    """A lease that is held; `check` before anything that two writers must not both do."""

    def __init__(self, uri: str, content: dict[str, Any]) -> None:
        self.uri = uri
        self._content = content
        self._lost: str | None = None
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewing.start()

    def check(self) -> None:
        """Raise Held if another process has taken the lease: it thought this one dead."""
        if self._lost is not None:
            raise Held(self.uri, self._lost)

    def release(self) -> None:
        """Stop renewing, and let others have it."""
        self._ended.set()
        self._renewing.join()
        if self._lost is not None:
            return
        try:
            storage.delete(self.uri)
        except storage.StorageError as error:  # what the block did matters more; this process ends, and shows it
            log.warning("The lease could not be given back: %s", error)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY_S):
            try:
                found = _read(self.uri)
                if found is not None and found.get("token") != self._content["token"]:
                    self._lost = _holder(found)
                    return
                self._content["renewals"] += 1
                storage.write_bytes(self.uri, _bytes(self._content))
            except storage.StorageError as error:  # the next renewal may succeed; others wait for several
                log.warning("The lease could not be renewed: %s", error)


@contextmanager
def lease(uri: str) -> Iterator[Lease]:
    """The lease at `uri`, for the length of the block.

    Raises:
        Held: another process holds it.
        StorageError: it cannot be read or written.
    """
    content = {"token": uuid.uuid4().hex, "renewals": 0, **_self()}
    while True:
        found = _read(uri)  # first: not every store knows how to create only what is not there
        if found is not None:
            if not _abandoned(uri, found):
                raise Held(uri, _holder(found))
            log.info("%s was left behind by %s: taken over.", uri, _holder(found))
            storage.delete(uri)
        try:
            storage.create_bytes(uri, _bytes(content))
            break
        except storage.Exists:
            continue
    held = Lease(uri, content)
    try:
        yield held
    finally:
        held.release()


def _self() -> dict[str, Any]:
    """This process, so that another on this machine can tell whether it lives."""
    return {"host": os.uname().nodename, "pid": os.getpid(), "started": _started(os.getpid()), "machine": _machine()}


def _machine() -> str | None:
    """What processes that see each other have in common: a boot of a kernel, and a name space of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None  # no Linux: every other process is a stranger


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # proc(5): the name may hold anything, brackets too
    return None if fields[0] in "ZX" else fields[19]


def _abandoned(uri: str, found: dict[str, Any]) -> bool:
    machine = _machine()
    if machine is not None and found.get("machine") == machine:
        return _started(int(found["pid"])) != found.get("started")
    watched_s = WATCHED_S if found else WRITTEN_S
    log.info("%s is held by %s: watching for %g s whether it is renewed.", uri, _holder(found), watched_s)
    time.sleep(watched_s)
    return _read(uri) == found


def _read(uri: str) -> dict[str, Any] | None:
    """What the lease says; None if it is gone, nothing if it is not whole."""
    try:
        found = json.loads(storage.read_bytes(uri))
    except storage.NotFound:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _holder(found: dict[str, Any]) -> str:
    return f"process {found.get('pid')} on {found.get('host')}"


def _bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()
