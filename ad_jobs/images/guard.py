"""A decoder in a process of its own, so that no object can hang, fill or kill the one that reads an archive.

The child is started once and reused.
It talks over a socket pair: eight bytes of length, then a pickle.
It ends by itself when its parent is gone (end of file on the socket), and an alarm ends it even within a C library that
never returns.
While it works at an object it may take so much memory and no more (RLIMIT_DATA).
Its stdout goes nowhere, its stderr into a file that is read when it dies: C libraries print to them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pickle
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError, JobError
from ad_jobs.images.decode import Decoded, decode_each, preview, refusals
from ad_jobs.images.domain import Taker
from ad_jobs.images.policy import Limits, PixelPolicy

# The child imports numpy and the codecs: a second on an idle machine, much more on one that is starved.
START_TIMEOUT_S = 120.0
# How long a header may take that is read again, once the pixels were too much.
HEADER_TIMEOUT_S = 10.0
# How long after the parent's limit an orphaned child still works at an object before its own alarm ends it.
ALARM_GRACE_S = 5.0
# How often an idle child looks whether its parent is still the one that started it.
ORPHAN_CHECK_S = 15.0

TAKEN = "taken"
# What becomes of an object by which the child was lost, or ran out of memory, before it told what its header says.
_NO_ANSWER = (ErrorCode.DECODE_TIMEOUT, ErrorCode.DECODER_CRASHED, ErrorCode.TOO_MUCH_MEMORY)
# What C++, Rust and Python print when they end for want of memory.
_NO_MEMORY = re.compile(rb"bad_alloc|memory allocation of \d+ bytes failed|[Oo]ut of memory|MemoryError|length_error")
_LAST_WORDS_BYTES = 4096
_LENGTH = struct.Struct("!Q")


class GuardedDecoder:
    """`decode` in a persistent child process with hard limits of time and memory. A context manager.

    The child starts with the first object and again after it was lost.
    Threads may share one: they take turns.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._turn = threading.Lock()

    def decode(self, data: bytes, policy: PixelPolicy, limits: Limits, *, only: int | None = None) -> Decoded:
        """As `decode_each`, under one policy."""
        (decoded,) = self.decode_each(data, [policy], limits, only=only)
        return decoded

    def decode_each(
        self,
        data: bytes,
        policies: Sequence[PixelPolicy],
        limits: Limits,
        *,
        only: int | None = None,
        takers: Sequence[Taker] = (),
    ) -> list[Decoded]:
        """As `images.decode.decode_each`, within `limits.timeout_s` of wall clock and `limits.max_memory_bytes`.

        What is beyond them, or kills the child, is an error of the takers that the header does not keep from it.

        Raises:
            ImageError: as there; DECODE_TIMEOUT after the limit, TOO_MUCH_MEMORY beyond the other, DECODER_CRASHED when
                the child died of it.
            JobError: no child process could be started.
        """
        work = functools.partial(decode_each, data, list(policies), limits, only=only, takers=tuple(takers))
        try:
            decoded: list[Decoded] = self.work(work, data, limits)
        except ImageError as error:
            if error.code not in _NO_ANSWER or not any(refused := self._refusals(data, limits, takers)):
                raise
            return [Decoded([], {}, (), refused, error) for _ in policies]
        return decoded

    def _refusals(self, data: bytes, limits: Limits, takers: Sequence[Taker]) -> tuple[str | None, ...]:
        """Which takers do not take an object that gave no answer; none where its header gives none either."""
        quick = limits.model_copy(update={"timeout_s": min(limits.timeout_s, HEADER_TIMEOUT_S)})
        try:
            refused: tuple[str | None, ...] = self.work(
                functools.partial(refusals, data, limits, tuple(takers)), data, quick
            )
        except ImageError:
            # Nobody can be told apart by it: what it did first is what becomes of it, under every model.
            return ()
        return refused

    def preview(
        self, data: bytes, frame: int, policy: PixelPolicy, limits: Limits, max_side: int = 512
    ) -> npt.NDArray[np.uint8]:
        """As `images.decode.preview`, within the limits; raises as `decode_each`."""
        shown: npt.NDArray[np.uint8] = self.work(
            functools.partial(preview, data, frame, policy, limits, max_side), data, limits
        )
        return shown

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.process.pid if self._child else None

    def close(self) -> None:
        """End the child."""
        with self._turn:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def work(self, work: Callable[[], Any], data: bytes, limits: Limits) -> Any:
        """What `work` on the object gives in the child; raises its ImageError."""
        # Not worth a trip, and a pipe should not carry what the limit forbids.
        if len(data) > limits.max_bytes:
            raise ImageError(ErrorCode.TOO_MANY_BYTES, f"{len(data)} bytes, over max_bytes {limits.max_bytes}")
        with self._turn:
            answer = self._ask((work, limits), limits)
        if isinstance(answer, ImageError):
            raise answer
        return answer

    def _ask(self, question: object, limits: Limits) -> Any:
        """The child's answer, from a fresh child if the old one was lost before it took the question."""
        timeout_s = limits.timeout_s
        for fresh in (False, True):
            if self._child is None or not self._child.alive():
                self._drop()
                self._child = _Child()
            try:
                return self._child.ask(question, timeout_s)
            except TimeoutError:
                self._drop()
                raise ImageError(ErrorCode.DECODE_TIMEOUT, f"longer than timeout_s {timeout_s:g}") from None
            except (EOFError, OSError):
                taken, how, starved = self._child.taken, self._child.death(), self._child.starved()
                self._drop()
                if starved:
                    raise _too_much_memory("the decoder process ended", limits) from None
                # Killed from outside while it was idle: no fault of the object that came next.
                if taken or fresh:
                    raise ImageError(ErrorCode.DECODER_CRASHED, f"the decoder process ended with {how}") from None
            except BaseException:
                # Interrupted half-way: what the child will answer belongs to no one.
                self._drop()
                raise
        raise AssertionError("a fresh child either answers or raises")

    def _drop(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


@functools.cache
def of_this_process() -> GuardedDecoder:
    """The process's own decoder, kept to its end: starting a child costs as much as many objects do."""
    return GuardedDecoder()


class _Child:
    """One running child and the parent's end of its socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            # Not multiprocessing: its spawn and forkserver import the parent's main module, in a Ray worker Ray's own.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from ad_jobs.images.guard import serve; serve()", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
            )
        self.socket = ours
        # Whether the last question has reached it.
        self.taken = False
        # Runs when the decoder is collected and when the interpreter exits; a killed parent's socket says it itself.
        self.end = weakref.finalize(self, _end, self.process, ours, self._stderr)
        try:
            _receive(ours, time.monotonic() + START_TIMEOUT_S)
        except (EOFError, OSError):
            self.end()
            raise JobError(
                "The decoder process did not start.",
                f"Run `{sys.executable} -c 'import ad_jobs.images.guard'` in the same environment.",
            ) from None

    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, question: object, timeout_s: float) -> Any:
        """The child's answer; TimeoutError if it takes longer, EOFError or OSError if it is lost."""
        deadline = time.monotonic() + timeout_s
        self.taken = False
        _send(self.socket, question, deadline)
        self.taken = _receive(self.socket, deadline) == TAKEN
        return _receive(self.socket, deadline)

    def death(self) -> str:
        """How the child ended, in words."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "its socket closed"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def starved(self) -> bool:
        """Whether the last that it printed was that it had no memory left."""
        with contextlib.suppress(OSError):
            printed = self._stderr.seek(0, os.SEEK_END)
            self._stderr.seek(max(0, printed - _LAST_WORDS_BYTES))
            return _NO_MEMORY.search(self._stderr.read()) is not None
        return False


def _end(process: subprocess.Popen[bytes], connection: socket.socket, stderr: IO[bytes]) -> None:
    connection.close()
    process.kill()
    process.wait()
    stderr.close()


def serve() -> None:
    """The child's life: decode what comes, until the parent is gone."""
    # Ctrl-C is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    # Before the time and memory of an object are counted.
    importlib.import_module("ad_jobs.images.dicom")
    own_bytes = _data_bytes()
    connection = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(EOFError, OSError):
        _send(connection, "ready", None)
        while os.getppid() == parent:
            if not select.select([connection], [], [], ORPHAN_CHECK_S)[0]:
                continue
            work, limits = _receive(connection, None)
            _send(connection, TAKEN, None)
            # The default action of SIGALRM ends the process, whatever holds the interpreter.
            signal.setitimer(signal.ITIMER_REAL, limits.timeout_s + ALARM_GRACE_S)
            _limit_memory(own_bytes + limits.max_memory_bytes)
            answer = _answer(work, limits)
            _limit_memory(None)
            signal.setitimer(signal.ITIMER_REAL, 0)
            del work
            # No library's prints of the past count when it dies one day.
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)
            _send(connection, answer, None)


def _answer(work: Callable[[], Any], limits: Limits) -> Any:
    try:
        return work()
    except ImageError as error:
        if error.code == ErrorCode.TOO_MUCH_MEMORY:
            return _too_much_memory(error.detail, limits).knowing(error.header)
        return error
    except MemoryError:
        return _too_much_memory("it does not fit", limits)


def _too_much_memory(detail: str, limits: Limits) -> ImageError:
    return ImageError(ErrorCode.TOO_MUCH_MEMORY, f"{detail}, over max_memory_bytes {limits.max_memory_bytes}")


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process as it is now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except FileNotFoundError:
        return 0
    return pages * resource.getpagesize()


def _limit_memory(most_bytes: int | None) -> None:
    """Let allocations beyond it fail; None: beyond nothing but what was set from outside."""
    _, outside = resource.getrlimit(resource.RLIMIT_DATA)
    within = outside if most_bytes is None else most_bytes
    if outside != resource.RLIM_INFINITY:
        within = min(within, outside)
    resource.setrlimit(resource.RLIMIT_DATA, (within, outside))


def _send(connection: socket.socket, message: object, deadline: float | None) -> None:
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    _limit(connection, deadline)
    connection.sendall(_LENGTH.pack(len(body)))
    _limit(connection, deadline)
    connection.sendall(body)


def _receive(connection: socket.socket, deadline: float | None) -> Any:
    (length,) = _LENGTH.unpack(_receive_bytes(connection, _LENGTH.size, deadline))
    return pickle.loads(_receive_bytes(connection, length, deadline))


def _receive_bytes(connection: socket.socket, length: int, deadline: float | None) -> bytearray:
    body = bytearray(length)
    view, received = memoryview(body), 0
    while received < length:
        _limit(connection, deadline)
        count = connection.recv_into(view[received:])
        if count == 0:
            raise EOFError
        received += count
    return body


def _limit(connection: socket.socket, deadline: float | None) -> None:
    """Let the next call on the socket take until the deadline."""
    if deadline is None:
        connection.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
