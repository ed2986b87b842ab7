"""Jobs on a real cluster of one head: once each, followed to their end, and what is sent along stays out of sight."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import socket
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rayhead import RayHead

import cluster
from cluster.errors import ClusterError
from cluster.jobs import environment
from cluster.jobs.jobs import Jobs, _Tail, attempt, code_digest

CLUSTER = Path(cluster.__file__).parent
VARIABLE = "AWS_SECRET_ACCESS_KEY"  # one that a session tells its workers
PROBE = f"""
from cluster import sent
environment.receive()

import hashlib, os
import ray
from cluster.session import session

def digest():
    return hashlib.sha256(os.environ["{VARIABLE}"].encode()).hexdigest()

with session("auto"):
    print("driver", digest())
    print("worker", ray.get(ray.remote(digest).remote()))
"""


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ({}, ("scan", True)),
        ({"other": "RUNNING"}, ("scan", True)),
        ({"scan": "PENDING"}, ("scan", False)),
        ({"scan": "RUNNING"}, ("scan", False)),
        ({"scan": "SUCCEEDED"}, ("scan", False)),
        ({"scan": "FAILED"}, ("scan-2", True)),
        ({"scan": "STOPPED"}, ("scan-2", True)),
        ({"scan": "FAILED", "scan-2": "RUNNING"}, ("scan-2", False)),
        ({"scan": "FAILED", "scan-2": "STOPPED"}, ("scan-3", True)),
        ({"scan": "FAILED", "scan-2": "FAILED", "scan-3": "SUCCEEDED"}, ("scan-3", False)),
        ({"scan-2": "FAILED"}, ("scan-3", True)),  # the first was deleted, which does not free its id
    ],
)
def test_a_request_is_one_job_until_that_fails(statuses: dict[str, str], expected: tuple[str, bool]) -> None:
    assert attempt("scan", statuses) == expected


def test_the_digest_of_code_is_of_what_is_sent(tmp_path: Path) -> None:
    def code(folder: str, **files: str) -> str:
        for name, text in files.items():
            path = tmp_path / folder / "package" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return code_digest([tmp_path / folder / "package"])

    first = code("a", **{"one.py": "1", "sub__two.py": "2"})
    assert code("b", **{"one.py": "1", "sub__two.py": "2", "sub__two.pyc": "compiled"}) == first
    assert code("c", **{"one.py": "1", "sub__two.py": "3"}) != first
    assert code("d", **{"one.py": "1", "two.py": "2"}) != first
    assert code("e", **{"one.py": "12", "sub__two.py": ""}) != first


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that `sent` takes for the one of the job's code; what it does to the process ends with the test."""
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    monkeypatch.setattr(environment, "_received", {})
    monkeypatch.setattr(environment.atexit, "register", lambda *_: None)
    for name in ("SENT_ONE", "RAY_RUNTIME_ENV_HOOK"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return tmp_path


def test_a_file_of_values_is_private_new_each_time_and_gone_once_read(fresh: Path) -> None:
    path = fresh / environment.FILE
    environment.pack(fresh, {"SENT_ONE": "value"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_bytes()
    environment.receive()
    assert os.environ["SENT_ONE"] == "value"
    assert os.environ["RAY_RUNTIME_ENV_HOOK"] == "cluster.jobs.environment.withhold"
    assert not path.exists()
    environment.pack(fresh, {"SENT_ONE": "value"})
    assert path.read_bytes() != first, "Ray would take the package for the first one, whose file is gone"


def test_where_nothing_was_sent_nothing_is_done(fresh: Path) -> None:
    del fresh
    before = dict(os.environ)
    environment.receive()
    assert dict(os.environ) == before


def test_what_was_received_is_not_told_to_ray(fresh: Path) -> None:
    environment.pack(fresh, {"SENT_ONE": "value"})
    environment.receive()
    given = {"env_vars": {"SENT_ONE": "value", "OTHER": "1"}, "working_dir": "gcs://package-with-the-file.zip"}
    found = environment.withhold(given)
    assert found["env_vars"] == {"OTHER": "1"}
    assert found["working_dir"] == str(fresh)
    assert given["env_vars"] == {"SENT_ONE": "value", "OTHER": "1"}
    del os.environ["SENT_ONE"]
    found["worker_process_setup_hook"]()
    assert os.environ["SENT_ONE"] == "value"


class _BreakingClient:
    """Answers with a log that grows, and breaks each connection off but the last."""

    def __init__(self) -> None:
        self._answers: Iterator[list[str]] = iter([["ab"], ["a", "bcd"], ["abcd", "ef"]])

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        answer = next(self._answers)
        for text in answer:
            yield text
        if answer[-1] != "ef":
            raise RuntimeError(f"the log of {job_id} broke off")


def test_a_log_that_breaks_off_is_taken_up_where_it_ended() -> None:
    written: list[str] = []
    tail = _Tail(_BreakingClient(), "job", written.append)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            asyncio.run(tail.read())
    asyncio.run(tail.read())
    assert "".join(written) == "abcdef"


def test_an_address_that_is_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nothing answers, and nobody else can
        for address in (f"http://127.0.0.1:{free.getsockname()[1]}", f"127.0.0.1:{free.getsockname()[1]}"):
            with pytest.raises(ClusterError, match=r"No Ray cluster answers.*--address, http://HEAD:8265"):
                Jobs(address)
    with pytest.raises(ClusterError, match="ray://head:10001"):
        Jobs("ray://someone:password@head:10001")


def test_a_token_file_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match=r"RAY_AUTH_TOKEN_PATH.*none \(No such file"):
        Jobs("http://127.0.0.1:1")


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *args: object) -> None:
        del format, args


def test_another_web_server_at_the_address() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for scheme in ("http://", ""):
            with pytest.raises(ClusterError, match="No Ray cluster answers"):
                Jobs(f"{scheme}127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def jobs(ray_head: RayHead) -> Iterator[Jobs]:
    """The head's jobs, for a client in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", ray_head.env["RAY_AUTH_TOKEN_PATH"])
        patch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # which an address that is given wins over
        yield Jobs(ray_head.address)


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A package that tells what its driver and a worker have in their environment, by digests."""
    folder = tmp_path / "probe"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text(PROBE)
    return folder


@pytest.mark.ray
def test_what_is_sent_reaches_driver_and_workers_and_stands_nowhere(ray_head: RayHead, jobs: Jobs, probe: Path) -> None:
    secret = secrets.token_hex(20)
    written: list[str] = []
    job_id, is_new = jobs.submit(
        "probe", "python -m probe", [probe, CLUSTER], metadata={"verb": "probe"}, values={VARIABLE: secret}
    )
    job = jobs.follow(job_id, written.append)
    log = "".join(written)
    assert (is_new, job.status, job.exit_code) == (True, "SUCCEEDED", 0), log
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert f"driver {digest}\n" in log
    assert f"worker {digest}\n" in log

    assert secret not in log + repr(jobs.list()) + repr(jobs._client.list_jobs())
    for what in ("runtime_envs", "actors", "tasks", "workers", "jobs"):
        assert secret not in _state(ray_head, what)
    holders = [path for path in ray_head.folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert not holders
    assert not list(ray_head.folder.rglob(environment.FILE))
    assert _in_memory(ray_head, secret) == []


def _in_memory(head: RayHead, secret: str) -> list[str]:
    """The keys under which the head's memory holds the secret, but for packages: those it drops after a while."""
    program = (
        "import sys; from ray._raylet import GcsClient\n"
        "head = GcsClient(address=sys.argv[1])\n"
        "for space in (None, b'fun', b'job', b'dashboard', b'cluster', b'session'):\n"
        "    for key in head.internal_kv_keys(b'', space):\n"
        "        value = head.internal_kv_get(key, space) or b''\n"
        "        if sys.argv[2].encode() in value and not key.startswith(b'gcs://'): print(space, key)"
    )
    return subprocess.run(
        [sys.executable, "-c", program, head.cluster_address, secret],
        env={**os.environ, **head.env},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()


def _state(head: RayHead, what: str) -> str:
    """What Ray's state API tells those with the token."""
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    address = f"{head.address}/api/jobs/" if what == "jobs" else f"{head.address}/api/v0/{what}?detail=1"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        text: str = answer.read().decode()
    assert json.loads(text)
    return text


@pytest.mark.ray
def test_a_job_that_was_stopped_makes_room_for_the_next_attempt(
    jobs: Jobs, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit() -> tuple[str, bool]:
        return jobs.submit("sleeper", "echo awake; exec sleep 300", [probe], metadata={})

    assert submit() == ("sleeper", True)
    assert submit() == ("sleeper", False)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "list", list)  # as two callers at once see it, of whom the cluster takes one
        assert submit() == ("sleeper", False)
    assert jobs.stop("sleeper")
    job = jobs.follow("sleeper", lambda _: None)
    assert (job.status, job.exit_code, job.over) == ("STOPPED", None, True)
    assert not jobs.stop("sleeper")
    assert submit() == ("sleeper-2", True)
    assert jobs.stop("sleeper-2")
    with pytest.raises(ClusterError, match="does not exist"):
        jobs.stop("never-submitted")
