"""Jobs on a real cluster of one head: once each, followed to their end, and what is sent along stays out of sight."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from rayhead import RayHead

import cluster
from cluster.errors import ClusterError
from cluster.jobs import environment
from cluster.jobs.client import Job, Jobs, Tail, attempt

CLUSTER = Path(cluster.__file__).parent
# One that a session tells its workers.
VARIABLE = "AWS_SECRET_ACCESS_KEY"
PROBE = f"""
from cluster.jobs import environment
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
        # The first was deleted, which does not free its id.
        ({"scan-2": "FAILED"}, ("scan-3", True)),
    ],
)
def test_a_request_is_one_job_until_that_fails(statuses: dict[str, str], expected: tuple[str, bool]) -> None:
    assert attempt("scan", statuses) == expected


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
    tail = Tail(_BreakingClient(), "job", written.append)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            asyncio.run(tail.read())
    asyncio.run(tail.read())
    assert "".join(written) == "abcdef"


@pytest.fixture(scope="module")
def jobs(ray_head: RayHead) -> Iterator[Jobs]:
    """The head's jobs, for a client in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", ray_head.env["RAY_AUTH_TOKEN_PATH"])
        # An address that is given wins over it.
        patch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
        yield Jobs(ray_head.address)


class _Before(Jobs):
    """Jobs as they were before any was submitted."""

    def list(self) -> Sequence[Job]:
        return []


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

    assert secret not in log + repr(jobs.list())
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
def test_a_job_that_was_stopped_makes_room_for_the_next_attempt(jobs: Jobs, probe: Path) -> None:
    def submit(jobs: Jobs = jobs) -> tuple[str, bool]:
        return jobs.submit("sleeper", "echo awake; exec sleep 300", [probe], metadata={})

    assert submit() == ("sleeper", True)
    assert submit() == ("sleeper", False)
    assert submit(_Before(jobs.address)) == ("sleeper", False), "of two callers at once the cluster takes one"
    assert jobs.stop("sleeper")
    job = jobs.follow("sleeper", lambda _: None)
    assert (job.status, job.exit_code, job.over) == ("STOPPED", None, True)
    assert not jobs.stop("sleeper")
    assert submit() == ("sleeper-2", True)
    assert jobs.stop("sleeper-2")
    with pytest.raises(ClusterError, match="does not exist"):
        jobs.stop("never-submitted")
