"""Work sent to a running cluster as Ray jobs: the code goes along, the log comes back, one request is one job.

A job's driver runs on the cluster's head and goes on when this process ends. Its id tells one request from another: as
long as a job of that id runs, or once it has succeeded, the same request does not start a second one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from cluster.errors import ClusterError, token_refused
from cluster.jobs import environment

log = logging.getLogger("retroscan.submit")

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ANSWER_S = 5.0  # for a first word from the address
FOLLOW_ATTEMPTS = 20  # to find a job again that is being followed: a head that is replaced is away for a minute
FOLLOW_EVERY_S = 3.0
_NOT_CODE = shutil.ignore_patterns("__pycache__", "*.pyc")


class Job(NamedTuple):
    """A job as the cluster tells of it."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    command: str
    metadata: Mapping[str, str]
    started: datetime | None
    ended: datetime | None
    exit_code: int | None  # of the driver; None while it runs, and where it never came to run
    message: str

    @property
    def over(self) -> bool:
        """Whether its status will not change any more."""
        return JobStatus(self.status).is_terminal()


def code_digest(packages: Iterable[Path]) -> str:
    """sha256, in hex, over names and contents of the packages' files: the code that a job would take along."""
    digest = hashlib.sha256()
    for package in sorted(packages, key=lambda path: path.name):
        files = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
        for path in sorted(files):
            name = f"{package.name}/{path.relative_to(package)}"
            digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def attempt(wanted: str, statuses: Mapping[str, str]) -> tuple[str, bool]:
    """The id that a request for `wanted` comes down to, and whether it is a new one.

    `statuses` are those of the cluster's jobs, by id. A job that failed or was stopped leaves its id behind, as Ray
    takes no id twice: the next attempt is `wanted`-2, and so on.
    """
    taken = [wanted] if wanted in statuses else []
    number = 2
    while f"{wanted}-{number}" in statuses:
        taken.append(f"{wanted}-{number}")
        number += 1
    if not taken:
        return wanted, True
    if statuses[taken[-1]] in (JobStatus.FAILED, JobStatus.STOPPED):
        return f"{wanted}-{number}", True
    return taken[-1], False


def named_address(address: str | None) -> str | None:
    """The address as it is given, or for none and `auto` as the environment has it, if it has one."""
    if address not in (None, "auto"):
        return address
    return next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)


class Jobs:
    """The jobs of the cluster whose dashboard is at an address.

    Args:
        address: http(s)://host:port of the dashboard; host:port of the dashboard or of the cluster itself; `auto` for
            what `named_address` says, or else any cluster of this machine. By default what `named_address` says, or
            else a dashboard on this machine.

    Raises:
        ClusterError: nothing answers there, or it takes no token of ours.
    """

    def __init__(self, address: str | None = None) -> None:
        asked = named_address(address) or address or DEFAULT_ADDRESS
        headers = _authorization()
        _hush()
        with _answers(asked), _only_by_argument():
            self._client: Any = JobSubmissionClient(_reachable(asked), headers=headers)
        self.address: str = _shown(self._client.get_address())
        # Ray keeps it to itself, and has no other way to ask.
        self.ray_version: str = self._client._server_ray_version
        if self.ray_version != ray.__version__:
            log.warning("%s runs Ray %s, this is Ray %s.", self.address, self.ray_version, ray.__version__)

    def list(self) -> Sequence[Job]:
        """The jobs submitted to the cluster, the latest first; those of finished drivers included."""
        with _answers(self.address):
            found = self._client.list_jobs()
        jobs = [_job(details) for details in found if details.type == JobType.SUBMISSION]
        return sorted(jobs, key=lambda job: job.started or datetime.now(UTC), reverse=True)

    def get(self, job_id: str) -> Job:
        """The job with this id; raises ClusterError if there is none."""
        with _answers(self.address):
            return _job(self._client.get_job_info(job_id))

    def submit(
        self,
        wanted: str,
        command: str,
        packages: Sequence[Path],
        *,
        metadata: Mapping[str, str],
        values: Mapping[str, str] | None = None,
    ) -> tuple[str, bool]:
        """The id of the job that does what is wanted, and whether this call has submitted it.

        Args:
            wanted: what tells this request from others, as an id: see `attempt`.
            command: for a shell in a folder that holds the packages.
            packages: folders of importable packages: the code that goes along.
            metadata: what `list` is to tell of the job; everyone who may list jobs can read it.
            values: variables of the job's environment, by name; they stay out of sight, see `sent`.

        Raises:
            ClusterError: the cluster does not take the job.
        """
        job_id, is_new = attempt(wanted, {job.id: job.status for job in self.list()})
        if not is_new:
            return job_id, False
        with tempfile.TemporaryDirectory(prefix="retroscan-job-") as folder:
            for package in packages:
                shutil.copytree(package, Path(folder, package.name), ignore=_NOT_CODE)
            if values:
                environment.pack(Path(folder), values)
            with _answers(self.address):
                try:
                    self._client.submit_job(
                        entrypoint=command,
                        submission_id=job_id,
                        runtime_env={"working_dir": folder},
                        metadata=dict(metadata),
                    )
                except RuntimeError as error:
                    if "already exists" in str(error):  # the same request, from elsewhere at the same time
                        return job_id, False
                    raise
        return job_id, True

    def follow(self, job_id: str, write: Callable[[str], object]) -> Job:
        """The job once it is over; its log, from the beginning, goes to `write` piece by piece.

        Raises:
            ClusterError: the cluster does not answer any more; the job may go on.
        """
        tail = _Tail(self._client, job_id, write)
        failures = 0
        while True:
            before = tail.position
            try:
                asyncio.run(tail.read())
                job = self.get(job_id)
                if job.over:
                    return job
                failures = 0
            except (ClusterError, RuntimeError, OSError, aiohttp.ClientError) as error:
                failures = 1 if tail.position > before else failures + 1
                if failures == FOLLOW_ATTEMPTS:
                    raise ClusterError(
                        f"The log of job {job_id} could not be followed any more. Got: {type(error).__name__}: {error}.",
                        "The job may go on: look with `retroscan jobs`, or run the same command to follow it again.",
                    ) from error
            time.sleep(FOLLOW_EVERY_S)

    def stop(self, job_id: str) -> bool:
        """Ask the job to end; False if it was over already. Raises ClusterError if there is none."""
        with _answers(self.address):
            return bool(self._client.stop_job(job_id))


class _Tail:
    """A job's log as far as it was read: a connection that broke is taken up where it ended."""

    def __init__(self, client: Any, job_id: str, write: Callable[[str], object]) -> None:
        self.position = 0
        self._client = client
        self._job_id = job_id
        self._write = write

    async def read(self) -> None:
        skip = self.position  # every connection begins with the log's first line
        async for text in self._client.tail_job_logs(self._job_id):
            new = text[skip:]
            skip = max(0, skip - len(text))
            self.position += len(new)
            self._write(new)


def _job(details: JobDetails) -> Job:
    return Job(
        id=details.submission_id,
        status=str(details.status.value),
        command=details.entrypoint,
        metadata=details.metadata or {},
        started=_time(details.start_time),
        ended=_time(details.end_time),
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _reachable(address: str) -> str:
    """The address as Ray takes it, once something listens there; Ray itself would wait for minutes."""
    if address == "auto":
        return address
    scheme, separator, _ = address.partition("://")
    if separator and scheme not in ("http", "https"):
        raise ClusterError(
            f"Jobs go to a cluster's dashboard. Got: address {_shown(address)}.",
            "Give --address http://HEAD:8265, or set RAY_ADDRESS to that.",
        )
    parts = urlsplit(address if separator else f"//{address}")
    port = parts.port or (443 if scheme == "https" else 80)
    with socket.create_connection((parts.hostname or "", port), ANSWER_S) as connection:
        if separator:
            return address
        connection.settimeout(ANSWER_S)
        connection.sendall(b"GET /api/version HTTP/1.0\r\n\r\n")
        if connection.recv(5) == b"HTTP/":
            return f"http://{address}"
    return address  # the cluster's own port, where Ray asks for the dashboard's


def _authorization() -> dict[str, str]:
    """The header with the token that the environment names; Ray by itself sends one under RAY_AUTH_MODE=token alone."""
    token, path = os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and path:
        try:
            token = Path(path).read_text().strip()
        except OSError as error:
            raise ClusterError(
                f"RAY_AUTH_TOKEN_PATH must name a readable file. Got: {path} ({error.strerror}).",
                "Write the cluster's token into it, or set RAY_AUTH_TOKEN.",
            ) from error
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def _only_by_argument() -> Iterator[None]:
    """A block in which an address given to Ray's client is not overridden by the environment."""
    before = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _answers(address: str) -> Iterator[None]:
    """A block in which whatever Ray's client raises becomes a ClusterError about the address."""
    try:
        yield
    except AuthenticationError as error:
        raise token_refused(_shown(address), str(error).splitlines()[0]) from error
    except RuntimeError as error:  # the client's answer to any other HTTP status; with a traceback, what it ends with
        *_, reason = (line for line in str(error).splitlines() if line.strip(". "))
        raise ClusterError(
            f"The cluster refused. Got: address {_shown(address)}, {reason}",
            "See `retroscan jobs`, and the logs of the cluster's dashboard.",
        ) from error
    except (OSError, ValueError, KeyError) as error:  # requests' errors are OSErrors; the others: it is no dashboard
        raise ClusterError(
            f"No Ray cluster answers. Got: address {_shown(address)} ({type(error).__name__}: {error}).",
            "Give the dashboard's --address, http://HEAD:8265, or set RAY_ADDRESS to it; a cluster on Kubernetes is "
            "reached through `kubectl port-forward service/NAME-head-svc 8265`.",
        ) from error


def _shown(address: str) -> str:
    """The address for people: without a password."""
    scheme, separator, rest = address.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _hush() -> None:
    """Keep from the log how Ray's client finds its way and packs what it sends."""
    for name in (
        "ray.dashboard.modules.dashboard_sdk",
        "ray.dashboard.modules.job.sdk",
        "ray._private.authentication.http_token_authentication",
        "ray._private.runtime_env.packaging",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
