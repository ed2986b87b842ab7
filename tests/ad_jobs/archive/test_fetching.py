"""What is fetched, what is waited for, and what is a row that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ad_jobs.archive import fetching
from ad_jobs.archive.fetching import Source, fetch_all, fetch_one
from ad_jobs.errors import ErrorCode, JobError
from cluster import storage
from cluster.errors import AccessDenied, KeysRefused, NotFound, StorageError, Unreachable

ONE = Source(0, "s3://b/one", 4, "e1")


class Store:
    """Stands in for `storage.fetch`: gives the answers in turn, then the last of them; counts the calls."""

    def __init__(self, *answers: StorageError | bytes) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []

    def fetch(self, uri: str, max_bytes: int | None = None) -> storage.Fetched:
        del max_bytes
        self.calls.append(uri)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, StorageError):
            raise answer
        return storage.Fetched(answer, "e1")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes only in `sleep`."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(fetching.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(fetching.time, "sleep", sleep)
    return now


@pytest.fixture(autouse=True)
def nothing_fetched_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_last_good", None)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    def made(*answers: StorageError | bytes, probe: StorageError | None = None) -> Store:
        found = Store(*answers)

        def fetch_range(uri: str, first: int, count: int) -> bytes:
            del first, count
            found.calls.append(f"probe {uri}")
            if probe is not None:
                raise probe
            return b"x"

        monkeypatch.setattr(storage, "fetch", found.fetch)
        monkeypatch.setattr(storage, "fetch_range", fetch_range)
        return found

    return made


def away(uri: str = ONE.uri) -> Unreachable:
    return Unreachable(uri, "connection refused")


def test_an_object_takes_one_request(store: Callable[..., Store]) -> None:
    found = store(b"data")
    assert fetch_one(ONE, 100).data == b"data"
    assert found.calls == [ONE.uri]


def test_a_store_that_is_away_is_waited_for(store: Callable[..., Store], clock: list[float]) -> None:
    found = store(*[away()] * 12, b"data")
    fetched = fetch_one(ONE, 100)
    assert (fetched.data, fetched.error) == (b"data", None)
    assert len(found.calls) == 13
    assert clock[0] < storage.PATIENCE_S


def test_a_store_that_stays_away_ends_the_scan_and_blames_no_object(
    store: Callable[..., Store], clock: list[float]
) -> None:
    store(away())
    with pytest.raises(JobError, match="has not answered for 10 minutes") as caught:
        fetch_one(ONE, 100)
    assert "it continues" in str(caught.value)
    assert clock[0] >= storage.PATIENCE_S


@pytest.mark.usefixtures("clock")
def test_an_object_that_alone_is_not_delivered_fails_by_itself(
    store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = store(away())
    monkeypatch.setattr(fetching, "_last_good", "s3://b/before")
    error = fetch_one(ONE, 100).error
    assert error is not None
    assert error.code == ErrorCode.FETCH_FAILED
    assert found.calls == [ONE.uri] * fetching.FETCH_ATTEMPTS + ["probe s3://b/before"]


@pytest.mark.usefixtures("clock")
def test_the_row_of_a_hidden_uri_does_not_give_it_away(store: Callable[..., Store]) -> None:
    store(NotFound(ONE.uri, f"{ONE.uri} is gone"))
    error = fetch_one(ONE, 100).error
    assert error is not None
    assert (error.code, "s3://" in str(error)) == (ErrorCode.NOT_FOUND, False)


def test_refused_keys_end_the_scan_and_one_refused_object_does_not(
    store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(KeysRefused(ONE.uri, "ExpiredToken"))
    with pytest.raises(JobError, match="refuses these credentials"):
        fetch_one(ONE, 100)
    denied = AccessDenied(ONE.uri, "AccessDenied")
    monkeypatch.setattr(fetching, "_last_good", "s3://b/before")
    store(denied)
    error = fetch_one(ONE, 100).error
    assert error is not None
    assert error.code == ErrorCode.ACCESS_DENIED
    # What came before is refused now, too: not this object, all of them.
    store(denied, probe=AccessDenied("s3://b/before", "AccessDenied"))
    with pytest.raises(JobError, match="refuses these credentials"):
        fetch_one(ONE, 100)


def test_another_etag_than_the_manifests_is_told(store: Callable[..., Store]) -> None:
    store(b"data")
    assert not fetch_one(ONE, 100).changed
    assert fetch_one(ONE._replace(etag="e0"), 100).changed
    assert not fetch_one(ONE._replace(etag=None), 100).changed  # a local file's may be unknown


def test_objects_come_in_order_and_no_more_bytes_ahead_than_the_limit(store: Callable[..., Store]) -> None:
    found = store(b"data")
    size = fetching.FETCH_AHEAD_BYTES // 3
    sources = [Source(number, f"s3://b/{number}", size) for number in range(40)]

    def one_by_one() -> Iterator[int]:
        for number, fetched in enumerate(fetch_all(sources, 1 << 40)):
            assert len(found.calls) <= number + 4  # three fit, and one more may be asked for when one is taken
            yield fetched.source.object_id

    assert list(one_by_one()) == list(range(40))
