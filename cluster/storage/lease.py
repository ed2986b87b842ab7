"""One writer at a time: a file in a folder that says who writes there, renewed as long as it does.

A process that is killed leaves its file behind.
On the same machine its death can be seen, and the next one takes over at once; from elsewhere it cannot, and the next
one watches for a while whether the file is still renewed.

Nobody replaces or removes the file of another who may live.
The first writer creates NAME; who takes over from it creates NAME.1, the next NAME.2, and the last of them has the
lease.
A store that creates only what is not there (O_EXCL on disk, `If-None-Match: *` on S3) gives each name to one process.
Whoever has created its file looks once more: it has the lease if no later file is there, and the one it takes over from
is as it was when it was found dead.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
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
# Whoever asks whether it still has the lease is told what was so at most this long ago.
LOOKED_EVERY_S = 1.0
# Of one who wants it while others come between.
ATTEMPTS = 100
# Longer than a request takes: where two may create the same file, the later one's is read by both.
SETTLED_AFTER_S = 10.0


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

    def __init__(self, uri: str, generation: int, content: dict[str, Any], renewed_every_s: float) -> None:
        self.uri = uri
        self._generation = generation
        self._content = content
        self._renewed_every_s = renewed_every_s
        self._lost: str | None = None
        self._looked = time.monotonic()
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewing.start()

    def check(self) -> None:
        """Find that nobody else has the lease, as of a second ago.

        Raises:
            Held: another process has taken it: it thought this one dead.
        """
        if self._lost is None and time.monotonic() - self._looked > LOOKED_EVERY_S:
            try:
                self._look()
            except StorageError as error:
                # What the caller does next will find that out for itself.
                log.warning("The lease could not be looked at: %s", error)
        if self._lost is not None:
            raise Held(self.uri, self._lost)

    def release(self) -> None:
        """Stop renewing, and let others have it."""
        self._ended.set()
        self._renewing.join()
        try:
            self._look()
            if self._lost is None:
                # The last one goes last: until then this process is the one that has the lease.
                for generation in range(self._generation + 1):
                    store.delete(_name(self.uri, generation))
        except StorageError as error:
            # What the block did matters more; this process ends, and that shows.
            log.warning("The lease could not be given back: %s", error)

    def _look(self) -> None:
        """Whether a later file is there, or this one's is gone or another's."""
        self._looked = time.monotonic()
        last = max(_generations(self.uri), default=-1)
        found = _read(_name(self.uri, last)) if last >= 0 else None
        if found is None:
            self._lost = "nobody any more: its file was removed"
        elif last != self._generation or found.get("token") != self._content["token"]:
            self._lost = _holder(found)

    def _renew(self) -> None:
        while not self._ended.wait(self._renewed_every_s):
            try:
                self._look()
                if self._lost is not None:
                    return
                self._content["renewals"] += 1
                store.write_bytes(_name(self.uri, self._generation), _bytes(self._content))
                # One that thought this process dead may have come between: it sees the renewal, or is seen here.
                self._look()
            except StorageError as error:
                # The next renewal may succeed; others wait for several.
                log.warning("The lease could not be renewed: %s", error)


@contextmanager
def lease(
    uri: str, *, renewed_every_s: float = RENEWED_EVERY_S, settled_after_s: float = SETTLED_AFTER_S
) -> Iterator[Lease]:
    """The lease at `uri`, for the length of the block.

    Args:
        uri: of the file, in the folder that it guards.
        renewed_every_s: the same for all who want this lease: it says how long a silent holder is thought alive.
        settled_after_s: how long to wait for others, where the store does not see to it that only one creates a file.

    Raises:
        Held: another process holds it.
        StorageError: it cannot be read or written.
    """
    content = {"token": uuid.uuid4().hex, "renewals": 0, **_self()}
    for _ in range(ATTEMPTS):
        generation = _take(uri, content, renewed_every_s, settled_after_s)
        if generation is not None:
            break
        # Two that stepped back for each other must not meet for ever.
        time.sleep(random.uniform(0.0, 0.05))
    else:
        raise Held(uri, "something that is no lease, or others who come between again and again")
    held = Lease(uri, generation, content, renewed_every_s)
    try:
        yield held
    finally:
        held.release()


def _take(uri: str, content: dict[str, Any], renewed_every_s: float, settled_after_s: float) -> int | None:
    """The number of this process's file, now the last; None if another came between, and it is to be tried again."""
    last = max(_generations(uri), default=-1)
    before = _read(_name(uri, last)) if last >= 0 else None
    if last >= 0 and before is None:
        return None
    if before is not None:
        if not _abandoned(_name(uri, last), before, renewed_every_s):
            raise Held(uri, _holder(before))
        log.info("%s was left behind by %s: taken over.", uri, _holder(before))
    mine = _name(uri, last + 1)
    try:
        if not store.create_bytes(mine, _bytes(content)):
            log.warning(
                "The store of %s does not say whether an object was there before: waiting %g s for others who want it.",
                uri,
                settled_after_s,
            )
            time.sleep(settled_after_s)
    except Exists:
        # By this very process, where the store's answer was lost and the request made again.
        if (_read(mine) or {}).get("token") != content["token"]:
            return None
    as_it_was = last < 0 or _read(_name(uri, last)) == before
    if max(_generations(uri), default=-1) == last + 1 and as_it_was and _read(mine) == content:
        return last + 1
    if (_read(mine) or {}).get("token") == content["token"]:
        store.delete(mine)
    return None


def _generations(uri: str) -> set[int]:
    """The numbers of the files that are there: 0 for the one named as the lease, n for NAME.n."""
    tails = (found.removeprefix(uri) for found in store.beginning_with(uri))
    return {0 if not tail else int(tail[1:]) for tail in tails if re.fullmatch(r"(\.[1-9][0-9]*)?", tail)}


def _name(uri: str, generation: int) -> str:
    return f"{uri}.{generation}" if generation else uri


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
    machine, pid = _machine(), found.get("pid")
    if machine is not None and found.get("machine") == machine and isinstance(pid, int):
        return _started(pid) != found.get("started")
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
