"""When a request to S3 is made again, how often, and after how long a pause: all of it is decided here.

Three rings, from the inside:
the client repeats a request that fails (`of_botocore`, `of_pyarrow`);
whoever reads a body asks for it again where it breaks off (`whole_body`);
whoever can wait for a store that is away does so (`patiently`).
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import botocore.exceptions as boto_errors
import urllib3.exceptions
from pyarrow import fs

from cluster.errors import Unreachable

log = logging.getLogger(__name__)

T = TypeVar("T")

# Of one request, the first included; for botocore AWS_MAX_ATTEMPTS overrides it.
ATTEMPTS = 6
# Of one object whose body broke off: botocore repeats requests, not bodies.
BODY_ATTEMPTS = 3
# How long a store may be away before those who wait for it give up: time to restart a server, or for an operator to.
PATIENCE_S = 600.0
# Between two attempts of those who wait: twice as long each time, from the first to the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0

_BROKE_OFF = (
    boto_errors.IncompleteReadError,
    boto_errors.ReadTimeoutError,
    boto_errors.ResponseStreamingError,
    urllib3.exceptions.ProtocolError,
)


def of_botocore() -> dict[str, Any]:
    """botocore's option `retries`, where the environment does not say otherwise."""
    options: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ:
        # It slows down by itself when the store says "slow down".
        options["mode"] = "adaptive"
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        options["total_max_attempts"] = ATTEMPTS
    return options


def of_pyarrow() -> fs.AwsStandardS3RetryStrategy:
    """As many attempts of pyarrow's own client."""
    return fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)


def whole_body(once: Callable[[], T]) -> T:
    """What `once` reads of a body, read again when the connection breaks within it."""
    for _ in range(BODY_ATTEMPTS - 1):
        try:
            return once()
        except _BROKE_OFF as error:
            log.info("A body broke off (%s): once more.", error)
    return once()


def patiently(call: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """What `call` returns, repeated for up to `patience_s` while its store does not answer.

    Raises:
        Unreachable: it did not answer in all that time.
    """
    deadline = time.monotonic() + patience_s
    failures = 0
    while True:
        try:
            return call()
        except Unreachable as error:
            if time.monotonic() >= deadline:
                raise
            log.warning("%s. Waiting for it.", error)
            failures += 1
            time.sleep(pause_s(failures))


def pause_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row, drawn anew each time: not all workers ask at once."""
    doubled = min(FIRST_PAUSE_S * 2 ** min(failures - 1, 30), LONGEST_PAUSE_S)
    return doubled * random.uniform(0.5, 1.5)
