"""What is tried again, how often, and what is never taken for an answer."""

from __future__ import annotations

import pytest

from cluster import storage
from cluster.storage import Unreachable, patiently, retries
from tests.cluster.storage.misbehaving import Misbehaving, error, ok


def test_a_server_error_is_tried_again(misbehaving: Misbehaving) -> None:
    misbehaving.answers = [error(503, "SlowDown"), ok(b"data")]
    assert storage.fetch("s3://b/k").data == b"data"
    assert len(misbehaving.requests) == 2


def test_the_environment_says_how_often(misbehaving: Misbehaving) -> None:
    misbehaving.answers = [error(500, "InternalError")]
    with pytest.raises(Unreachable):
        storage.fetch("s3://b/k")
    assert len(misbehaving.requests) == 2


def test_by_default_a_request_is_made_six_times_and_slows_down_when_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"):
        monkeypatch.delenv(name, raising=False)
    assert retries.of_botocore() == {"mode": "adaptive", "total_max_attempts": 6}
    monkeypatch.setenv("AWS_RETRY_MODE", "standard")
    assert "mode" not in retries.of_botocore()


def test_a_body_that_breaks_off_is_fetched_again(misbehaving: Misbehaving) -> None:
    misbehaving.answers = [ok(b"da", announce=4), ok(b"data")]
    assert storage.fetch("s3://b/k").data == b"data"
    assert len(misbehaving.requests) == 2


def test_a_body_that_always_breaks_off_is_never_taken_for_whole(misbehaving: Misbehaving) -> None:
    misbehaving.answers = [ok(b"da", announce=4)]
    with pytest.raises(Unreachable):
        storage.fetch("s3://b/k")
    assert len(misbehaving.requests) == retries.BODY_ATTEMPTS
    with pytest.raises(Unreachable):
        storage.fetch_range("s3://b/k", 0, 4)


def test_a_store_that_comes_back_is_waited_for() -> None:
    answers = [Unreachable("s3://b/k", "away"), "data"]

    def call() -> str:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    assert patiently(call) == "data"


def test_patience_ends() -> None:
    calls: list[None] = []

    def call() -> None:
        calls.append(None)
        raise Unreachable("s3://b/k", "away")

    with pytest.raises(Unreachable, match="away"):
        patiently(call, patience_s=0.1)
    assert len(calls) == 2, "once more after the first pause, which is longer than the patience"


def test_pauses_double_up_to_the_longest_and_are_drawn() -> None:
    for failures, middle in ((1, 0.5), (2, 1.0), (5, 8.0), (6, 15.0), (10_000, 15.0)):
        pauses = {retries.pause_s(failures) for _ in range(20)}
        assert len(pauses) > 1
        assert all(0.5 * middle <= pause <= 1.5 * middle for pause in pauses)
