"""Fixtures of the whole suite."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from rayhead import RayHead
from s3server import S3Server

# The machine may be busy: no test asserts a time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with the longest tests first, so that processes that share them out end together."""
    longest = ("faults", "e2e", "contract", "models")
    # Stable.
    items.sort(key=lambda item: item.path.parent.name not in longest)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A running S3 server; from here to the end of the session the environment leads to it.

    Child processes and Ray workers that start later inherit `s3.env`.
    """
    # Not below pytest's folder: sockets lie in here, and a socket's path has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="rs-s3-"))
    server = S3Server(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in server.env.items():
            patch.setenv(name, value)
        try:
            server.start()
            yield server
        finally:
            server.stop()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A running Ray head with a token, to which jobs are sent; the environment does not lead to it."""
    head = RayHead()
    try:
        head.start()
        yield head
    finally:
        head.stop()
