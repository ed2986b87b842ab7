"""What a misbehaving server makes of a request: tried again, or one kind of error, never a wrong answer."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import storage
from cluster.errors import KeysRefused
from cluster.storage import AccessDenied, NotFound, StorageError, TooLarge, Unreachable

Answer = Callable[[BaseHTTPRequestHandler], None]


class Misbehaving:
    """An S3 endpoint that gives prepared answers in turn, the last one for ever, and notes the requests."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append(f"{self.command} {self.path}")
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Misbehaving]:
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


def ok(body: bytes, *, announce: int | None = None) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body) if announce is None else announce))
        request.send_header("ETag", '"abc"')
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
        request.close_connection = announce is not None

    return answer


def error(status: int, code: str = "") -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        body = f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode() if code else b""
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    return answer


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


def test_a_body_that_breaks_off_is_fetched_again(misbehaving: Misbehaving) -> None:
    misbehaving.answers = [ok(b"da", announce=4), ok(b"data")]
    assert storage.fetch("s3://b/k").data == b"data"
    assert len(misbehaving.requests) == 2


def test_a_body_that_always_breaks_off_is_never_taken_for_whole(misbehaving: Misbehaving) -> None:
    misbehaving.answers = [ok(b"da", announce=4)]
    with pytest.raises(Unreachable):
        storage.fetch("s3://b/k")
    with pytest.raises(Unreachable):
        storage.fetch_range("s3://b/k", 0, 4)


def test_a_server_error_is_tried_again(misbehaving: Misbehaving) -> None:
    misbehaving.answers = [error(503, "SlowDown"), ok(b"data")]
    assert storage.fetch("s3://b/k").data == b"data"


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
    pickle.loads(pickle.dumps(caught.value))


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
    one = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><ETag>e</ETag>"
        "<LastModified>2024-01-01T00:00:00Z</LastModified></Contents>"
        for key in keys
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{one}</ListBucketResult>".encode()


@pytest.mark.parametrize("key", ["p/../../etc", "p/a/..", "p/./a", "p//a", "p/a//b"])
def test_no_key_is_copied_out_of_the_folder(misbehaving: Misbehaving, tmp_path: Path, key: str) -> None:
    misbehaving.answers = [ok(listing(key))]
    with pytest.raises(StorageError, match="leave the folder"):
        storage.download_folder("s3://b/p", tmp_path / "here")
    assert storage.list_names(str(tmp_path)) == []
