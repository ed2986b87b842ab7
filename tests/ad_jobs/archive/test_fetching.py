"""What is fetched, what is waited for, and what is a row that failed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ad_jobs.archive import fetching
from ad_jobs.archive.fetching import Fetcher, Source, fetch_all
from ad_jobs.archive.objects import Packed
from ad_jobs.errors import ErrorCode, JobError
from cluster import storage
from cluster.errors import AccessDenied, KeysRefused, NotFound, StorageError, Unreachable

ONE = Source(0, "s3://b/one", 4, "e1")
BEFORE = Source(1, "s3://b/before", 4, "e1")


class Store:
    """Gives its answers in turn, then the last of them, and counts the calls; its time passes in `sleep`."""

    def __init__(self, *answers: StorageError | bytes, probe: StorageError | None = None) -> None:
        self.answers = list(answers)
        self.probe = probe
        self.calls: list[str] = []
        self.now_s = 0.0
        self.fetcher = Fetcher(
            fetch=self.fetch, fetch_range=self.fetch_range, monotonic=lambda: self.now_s, sleep=self.sleep
        )

    def fetch(self, uri: str, max_bytes: int, within: str | None, etag: str | None) -> Packed:
        del max_bytes, within, etag
        self.calls.append(uri)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, StorageError):
            raise answer
        return Packed(answer, "e1")

    def fetch_range(self, uri: str, first: int, count: int) -> bytes:
        del first, count
        self.calls.append(f"probe {uri}")
        if self.probe is not None:
            raise self.probe
        return b"x"

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def get(self, source: Source) -> fetching.FetchedObject:
        return self.fetcher.get(source, 100)


def away(uri: str = ONE.uri) -> Unreachable:
    return Unreachable(uri, "connection refused")


def test_an_object_takes_one_request() -> None:
    store = Store(b"data")
    assert store.get(ONE).data == b"data"
    assert store.calls == [ONE.uri]


def test_a_store_that_is_away_is_waited_for() -> None:
    store = Store(*[away()] * 12, b"data")
    fetched = store.get(ONE)
    assert (fetched.data, fetched.error) == (b"data", None)
    assert len(store.calls) == 13
    assert store.now_s < storage.PATIENCE_S


def test_a_store_that_stays_away_ends_the_scan_and_blames_no_object() -> None:
    store = Store(away())
    with pytest.raises(JobError, match="has not answered for 10 minutes") as caught:
        store.get(ONE)
    assert "it continues" in str(caught.value)
    assert store.now_s >= storage.PATIENCE_S


def test_an_object_that_alone_is_not_delivered_fails_by_itself() -> None:
    store = Store(b"data", away())
    assert store.get(BEFORE).error is None
    error = store.get(ONE).error
    assert error is not None
    assert error.code == ErrorCode.FETCH_FAILED
    # Others come before the last of them, and after it.
    probe = f"probe {BEFORE.uri}"
    assert store.calls == [BEFORE.uri, *[ONE.uri] * fetching.FETCH_ATTEMPTS, probe, ONE.uri, probe]


def test_a_store_that_comes_back_before_it_is_asked_for_another_blames_no_object() -> None:
    store = Store(b"data", *[away()] * fetching.FETCH_ATTEMPTS, b"late")
    assert store.get(BEFORE).error is None
    fetched = store.get(ONE)
    assert (fetched.data, fetched.error) == (b"late", None)
    assert f"probe {BEFORE.uri}" in store.calls


def test_a_disk_that_fails_before_it_gave_anything_is_not_waited_for() -> None:
    store = Store(away("/mnt/one"))
    error = store.get(ONE._replace(uri="/mnt/one")).error
    assert error is not None
    assert error.code == ErrorCode.FETCH_FAILED
    assert len(store.calls) == fetching.FETCH_ATTEMPTS


def test_the_row_of_a_hidden_uri_does_not_give_it_away() -> None:
    error = Store(NotFound(ONE.uri, f"{ONE.uri} is gone")).get(ONE).error
    assert error is not None
    assert (error.code, "s3://" in str(error)) == (ErrorCode.NOT_FOUND, False)


def test_refused_keys_end_the_scan_and_one_refused_object_does_not() -> None:
    with pytest.raises(JobError, match="refuses these credentials"):
        Store(KeysRefused(ONE.uri, "ExpiredToken")).get(ONE)
    store = Store(b"data", AccessDenied(ONE.uri, "AccessDenied"))
    assert store.get(BEFORE).error is None
    error = store.get(ONE).error
    assert error is not None
    assert error.code == ErrorCode.ACCESS_DENIED
    # What came before is refused now, too: not this object, all of them.
    store.probe = AccessDenied(BEFORE.uri, "AccessDenied")
    with pytest.raises(JobError, match="refuses these credentials"):
        store.get(ONE)


def test_another_etag_than_the_manifests_is_told() -> None:
    store = Store(b"data")
    assert not store.get(ONE).changed
    assert store.get(ONE._replace(etag="e0")).changed
    # A local file's may be unknown.
    assert not store.get(ONE._replace(etag=None)).changed


def test_objects_come_in_order_and_no_more_bytes_ahead_than_the_limit() -> None:
    store = Store(b"data")
    size = fetching.FETCH_AHEAD_BYTES // 3
    sources = [Source(number, f"s3://b/{number}", size) for number in range(40)]

    def one_by_one() -> Iterator[int]:
        for number, fetched in enumerate(fetch_all(sources, 1 << 40, store.fetcher)):
            # Three fit, and one more may be asked for when one is taken.
            assert len(store.calls) <= number + 4
            yield fetched.source.object_id

    assert list(one_by_one()) == list(range(40))


@pytest.mark.parametrize("told", ["s3://b/Doe^J 1", "b/Doe^J 1", "Doe^J 1", "http://host/b/Doe%5EJ%201"])
def test_no_detail_repeats_a_name(told: str, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(0, "s3://b/Doe^J 1", 4, "e1")
    for refused in (NotFound(source.uri, f"no {told}"), StorageError(source.uri, f"odd \ud800 {told}")):
        error = Store(refused).get(source).error
        assert error is not None
        assert "Doe" not in error.detail
        error.detail.encode()
    with pytest.raises(JobError) as ended:
        Store(Unreachable(source.uri, f"away: {told}")).get(source)
    assert "Doe" not in str(ended.value) + caplog.text
