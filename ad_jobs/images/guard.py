"""A decoder in a process of its own, so that no object can hang or kill the one that reads an archive.

The child is started once and reused.
It talks over a socket pair: eight bytes of length, then a pickle.
It ends by itself when its parent is gone (end of file on the socket), and an alarm ends it even within a C library that
never returns.
Its stdout and stderr go nowhere: C libraries print to them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, Self

from ad_jobs.errors import ErrorCode, ImageError, JobError
from ad_jobs.images.decode import Decoded, decode_each
from ad_jobs.images.policy import Limits, PixelPolicy

# The child imports numpy and the codecs: a second on an idle machine, much more on one that is starved.
START_TIMEOUT_S = 120.0
# How long after the parent's limit an orphaned child still works at an object before its own alarm ends it.
ALARM_GRACE_S = 5.0
# How often an idle child looks whether its parent is still the one that started it.
ORPHAN_CHECK_S = 15.0

TAKEN = "taken"
_LENGTH = struct.Struct("!Q")


class GuardedDecoder:
    """`decode` in a persistent child process with a hard time limit. A context manager.

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
        self, data: bytes, policies: Sequence[PixelPolicy], limits: Limits, *, only: int | None = None
    ) -> list[Decoded]:
        """As `images.decode.decode_each`, within `limits.timeout_s` of wall clock.

        Raises:
            ImageError: as there; DECODE_TIMEOUT after the limit, DECODER_CRASHED when the child died of it.
            JobError: no child process could be started.
        """
        # Not worth a trip, and a pipe should not carry what the limit forbids.
        if len(data) > limits.max_bytes:
            raise ImageError(ErrorCode.TOO_MANY_BYTES, f"{len(data)} bytes, over max_bytes {limits.max_bytes}")
        with self._turn:
            answer = self._ask((data, list(policies), limits, only), limits.timeout_s)
        if isinstance(answer, ImageError):
            raise answer
        assert isinstance(answer, list)
        return answer

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

    def _ask(self, question: object, timeout_s: float) -> Any:
        """The child's answer, from a fresh child if the old one was lost before it took the question."""
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
                taken, how = self._child.taken, self._child.death()
                self._drop()
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


class _Child:
    """One running child and the parent's end of its socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # Not multiprocessing: its spawn and forkserver import the parent's main module, in a Ray worker Ray's own.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from ad_jobs.images.guard import serve; serve()", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.socket = ours
        # Whether the last question has reached it.
        self.taken = False
        # Runs when the decoder is collected and when the interpreter exits; a killed parent's socket says it itself.
        self.end = weakref.finalize(self, _end, self.process, ours)
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


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()


def serve() -> None:
    """The child's life: decode what comes, until the parent is gone."""
    # Ctrl-C is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    connection = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(EOFError, OSError):
        _send(connection, "ready", None)
        while os.getppid() == parent:
            if not select.select([connection], [], [], ORPHAN_CHECK_S)[0]:
                continue
            data, policies, limits, only = _receive(connection, None)
            _send(connection, TAKEN, None)
            # The default action of SIGALRM ends the process, whatever holds the interpreter.
            signal.setitimer(signal.ITIMER_REAL, limits.timeout_s + ALARM_GRACE_S)
            answer = _answer(data, policies, limits, only)
            signal.setitimer(signal.ITIMER_REAL, 0)
            del data
            _send(connection, answer, None)


def _answer(data: bytes, policies: list[PixelPolicy], limits: Limits, only: int | None) -> list[Decoded] | ImageError:
    try:
        return decode_each(data, policies, limits, only=only)
    except ImageError as error:
        return error
    except MemoryError:
        return ImageError(ErrorCode.TOO_MANY_PIXELS, "does not fit in memory")


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
