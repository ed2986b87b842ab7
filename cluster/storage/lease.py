"""One writer at a time: a file in a folder that says who writes there, renewed as long as it does.

A process that is killed leaves its lease behind.
On the same machine its death can be seen, and the next one takes the lease at once; from elsewhere it cannot, and the
next one watches for a while whether the lease is still renewed.
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

from cluster.errors import Exists, NotFound, StorageError
from cluster.storage import store

log = logging.getLogger(__name__)

RENEWED_EVERY_S = 20.0
# So many times that without a renewal: its holder is gone.
WATCHED_RENEWALS = 3.0
# So much of that for one that is not wholly written: its writer is gone.
WRITTEN_RENEWALS = 0.1


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

    def __init__(self, uri: str, content: dict[str, Any], renewed_every_s: float) -> None:
        self.uri = uri
        self._content = content
        self._renewed_every_s = renewed_every_s
        self._lost: str | None = None
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewing.start()

    def check(self) -> None:
        """Find that nobody else has the lease.

        Raises:
            Held: another process has taken it: it thought this one dead.
        """
        if self._lost is not None:
            raise Held(self.uri, self._lost)

    def release(self) -> None:
        """Stop renewing, and let others have it."""
        self._ended.set()
        self._renewing.join()
        if self._lost is not None:
            return
        try:
            store.delete(self.uri)
        except StorageError as error:
            # What the block did matters more; this process ends, and that shows.
            log.warning("The lease could not be given back: %s", error)

    def _renew(self) -> None:
        while not self._ended.wait(self._renewed_every_s):
            try:
                found = _read(self.uri)
                if found is not None and found.get("token") != self._content["token"]:
                    self._lost = _holder(found)
                    return
                self._content["renewals"] += 1
                store.write_bytes(self.uri, _bytes(self._content))
            except StorageError as error:
                # The next renewal may succeed; others wait for several.
                log.warning("The lease could not be renewed: %s", error)


@contextmanager
def lease(uri: str, *, renewed_every_s: float = RENEWED_EVERY_S) -> Iterator[Lease]:
    """The lease at `uri`, for the length of the block.

    Args:
        uri: of the file, in the folder that it guards.
        renewed_every_s: the same for all who want this lease: it says how long a silent holder is thought alive.

    Raises:
        Held: another process holds it.
        StorageError: it cannot be read or written.
    """
    content = {"token": uuid.uuid4().hex, "renewals": 0, **_self()}
    while True:
        # Read first: not every store knows how to create only what is not there.
        found = _read(uri)
        if found is not None:
            if not _abandoned(uri, found, renewed_every_s):
                raise Held(uri, _holder(found))
            log.info("%s was left behind by %s: taken over.", uri, _holder(found))
            store.delete(uri)
        try:
            store.create_bytes(uri, _bytes(content))
            break
        except Exists:
            continue
    held = Lease(uri, content, renewed_every_s)
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
        # No Linux: every other process is a stranger.
        return None


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # proc(5): the name may hold anything, brackets too.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _abandoned(uri: str, found: dict[str, Any], renewed_every_s: float) -> bool:
    machine = _machine()
    if machine is not None and found.get("machine") == machine:
        return _started(int(found["pid"])) != found.get("started")
    watched_s = renewed_every_s * (WATCHED_RENEWALS if found else WRITTEN_RENEWALS)
    log.info("%s is held by %s: watching for %g s whether it is renewed.", uri, _holder(found), watched_s)
    time.sleep(watched_s)
    return _read(uri) == found


def _read(uri: str) -> dict[str, Any] | None:
    """What the lease says; None if it is gone, nothing if it is not whole."""
    try:
        found = json.loads(store.read_bytes(uri))
    except NotFound:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _holder(found: dict[str, Any]) -> str:
    return f"process {found.get('pid')} on {found.get('host')}"


def _bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()
