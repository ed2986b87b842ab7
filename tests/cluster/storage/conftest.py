"""Fixtures of the tests of storage."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.cluster.storage.misbehaving import Misbehaving


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Misbehaving]:
    """A server of prepared answers, to which the environment leads; a failed request is made once more."""
    fake = Misbehaving()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_RETRY_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", fake.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()
