"""Objects in S3: what a real server says, and what becomes of a server's odd answers."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3server import S3Server

from cluster import storage
from cluster.storage import AccessDenied, KeysRefused, NotFound, StorageError, TooLarge, Unreachable
from tests.cluster.storage.misbehaving import Answer, Misbehaving, error, ok

# --- A real server


@pytest.fixture(scope="module")
def prefix(s3: S3Server) -> str:
    """Three objects, one of them in a folder, and the empty key that marks another."""
    for key in ("a-b", "a/x", "a0"):
        s3.put(f"s3/{key}", key.encode())
    s3.put("s3/marker/", b"")
    return s3.uri("s3")


@pytest.mark.s3
def test_more_keys_than_one_answer_holds(s3: S3Server) -> None:
    keys = [f"many/{number % 7}/{number:04d}" for number in range(1_200)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: s3.put(key, b"1"), keys))
    assert [info.uri for info in storage.list_objects(s3.uri("many"))] == sorted(map(s3.uri, keys))


@pytest.mark.s3
def test_a_prefix_is_a_folder(s3: S3Server, prefix: str) -> None:
    s3.put("s3-too", b"")
    assert storage.list_names(prefix) == ["a-b", "a/x", "a0"]
    assert storage.list_names(f"{prefix}/a") == ["x"]
    assert storage.is_folder(prefix)
    assert not storage.is_folder(f"{prefix}/a-b")
    assert not storage.is_folder(s3.uri("s"))
    assert not storage.exists(prefix)
    assert not storage.exists("s3://archive")
    assert storage.exists(f"{prefix}/a-b")


@pytest.mark.s3
@pytest.mark.parametrize("uri", ["s3://no-such-bucket/a", "s3://", "s3://Bad_Bucket!/a", "s3://archive/gone"])
def test_missing(s3: S3Server, uri: str) -> None:
    assert s3.bucket == "archive"
    for read in (storage.fetch, storage.stat, lambda uri: list(storage.list_objects(uri))):
        with pytest.raises(NotFound):
            read(uri)


@pytest.mark.s3
def test_check_bucket(s3: S3Server) -> None:
    storage.check_bucket(s3.uri("any/thing"))
    with pytest.raises(NotFound):
        storage.check_bucket("s3://no-such-bucket/a")


@pytest.mark.s3
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(prefix: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "wrong")
    for read in (storage.fetch, storage.stat, storage.exists, lambda uri: list(storage.list_objects(uri))):
        with pytest.raises(AccessDenied):
            read(f"{prefix}/a0")
    with pytest.raises(AccessDenied):
        storage.write_bytes(f"{prefix}/a0", b"")


@pytest.mark.s3
def test_no_credentials(prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(AccessDenied, match="credentials"):
        storage.fetch(f"{prefix}/a0")


@pytest.mark.s3
def test_pyarrow_sees_the_same_store_and_carries_no_secret(s3: S3Server) -> None:
    filesystem, path = storage.filesystem(s3.uri("arrow/a b.bin"))
    pickled = pickle.dumps(filesystem)
    assert s3.env["AWS_SECRET_ACCESS_KEY"].encode() not in pickled
    with pickle.loads(pickled).open_output_stream(path) as out:
        out.write(b"by pyarrow")
    assert storage.read_bytes(s3.uri("arrow/a b.bin")) == b"by pyarrow"


@pytest.mark.s3
def test_a_process_has_one_pyarrow_client_until_its_store_changes(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, path = storage.filesystem(s3.uri("arrow/one"))
    assert storage.filesystem(s3.uri("arrow/two"))[0] is first
    with first.open_output_stream(path) as out:
        out.write(b"one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    second, _ = storage.filesystem(s3.uri("arrow/one"))
    assert second is not first
    with pytest.raises(OSError, match=r"Signature|ACCESS_DENIED|403"):
        second.open_input_file(path).read()


@pytest.mark.s3
def test_many_threads_share_one_client(prefix: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: storage.fetch(f"{prefix}/a0").data, range(100))) == {b"a0"}


# --- Odd answers


def test_fetch_is_one_get_of_the_literal_key(misbehaving: Misbehaving) -> None:
    misbehaving.answers = [ok(b"data")]
    assert storage.fetch("s3://b/a/../c//d#e?f%20 g") == (b"data", "abc")
    assert misbehaving.requests == ["GET /b/a/../c//d%23e%3Ff%2520%20g"]


def test_a_store_with_a_name_is_addressed_by_path(misbehaving: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise the bucket would be a host, bucket.localhost, which needs a DNS entry.
    monkeypatch.setenv("AWS_ENDPOINT_URL", misbehaving.endpoint.replace("127.0.0.1", "localhost"))
    misbehaving.answers = [ok(b"data")]
    assert storage.fetch("s3://bucket/k").data == b"data"
    assert misbehaving.requests == ["GET /bucket/k"]


def test_too_large_is_told_before_the_body_is_read(misbehaving: Misbehaving) -> None:
    # Only the first bytes of what is announced ever come: reading on would fail, not refuse.
    misbehaving.answers = [ok(b"....", announce=1_000_000_000)]
    with pytest.raises(TooLarge):
        storage.fetch("s3://b/k", max_bytes=999_999_999)
    assert len(misbehaving.requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error(500, "InternalError"), Unreachable),
        (error(503, "SlowDown"), Unreachable),
        (error(403), AccessDenied),
        (error(401), AccessDenied),
        (error(400, "ExpiredToken"), KeysRefused),
        (error(404), NotFound),
        (error(400, "InvalidBucketName"), NotFound),
        (error(400, "KeyTooLongError"), StorageError),
    ],
)
def test_answers_become_errors(misbehaving: Misbehaving, answer: Answer, kind: type[StorageError]) -> None:
    misbehaving.answers = [answer]
    with pytest.raises(StorageError) as caught:
        storage.fetch("s3://b/k")
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([ok(b""), error(412, "PreconditionFailed")], True),
        ([ok(b""), ok(b"")], False),
        ([error(501, "NotImplemented"), ok(b"")], False),
    ],
    ids=["knows the condition", "takes it for a plain PUT", "refuses it"],
)
def test_whether_a_store_knows_conditional_writes(misbehaving: Misbehaving, answers: list[Answer], told: bool) -> None:
    misbehaving.answers = answers
    assert storage.create_bytes("s3://archive/lock", b"mine") is told
    assert misbehaving.requests == ["PUT /archive/lock"] * 2


def test_a_server_that_ignores_ranges(misbehaving: Misbehaving) -> None:
    misbehaving.answers = [ok(b"0123456789")]
    assert storage.fetch_range("s3://b/k", 3, 4) == b"3456"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "no-scheme", "http://[broken"])
def test_no_server(misbehaving: Misbehaving, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(Unreachable, match=r"s3://b/k"):
        storage.fetch("s3://b/k")
    assert not misbehaving.requests


def listing(*keys: str) -> bytes:
    """A server's answer to ListObjectsV2."""
    one = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><ETag>e</ETag>"
        "<LastModified>2024-01-01T00:00:00Z</LastModified></Contents>"
        for key in keys
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{one}</ListBucketResult>".encode()


def test_keys_that_a_server_lists_folder_by_folder_come_in_order(misbehaving: Misbehaving) -> None:
    misbehaving.answers = [ok(listing("p/a/x", "p/a-b", "p/a0"))]
    assert [info.uri for info in storage.list_objects("s3://b/p")] == ["s3://b/p/a-b", "s3://b/p/a/x", "s3://b/p/a0"]


def test_an_endpoint_that_does_not_answer_is_named_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9") as caught:
        storage.fetch("s3://bucket/Doe^Jane/1 2.dcm")
    assert "Doe" not in caught.value.detail
    assert "bucket" not in caught.value.detail
