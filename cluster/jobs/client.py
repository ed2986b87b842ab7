"""Work sent to a running cluster as Ray jobs: the code goes along, the log comes back, one request is one job.

A job's driver runs on the cluster's head and goes on when this process ends.
Its id tells one request from another: as long as a job of that id runs, or once it has succeeded, the same request does
not start a second one.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import ray
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster.errors import ClusterError
from cluster.jobs import code, connection, environment

log = logging.getLogger("retroscan.submit")

# For a node's agent that takes a job.
AGENT_S = 60.0
# To find a job again that is being followed: a head that is replaced is away for a minute.
FOLLOW_ATTEMPTS = 20
FOLLOW_EVERY_S = 3.0


class Job(NamedTuple):
    """A job as the cluster tells of it.

    `status` is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
    `exit_code` is the driver's: None while it runs, and where it never came to run.
    """

    id: str
    status: str
    command: str
    metadata: Mapping[str, str]
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    message: str

    @property
    def over(self) -> bool:
        """Whether its status will not change any more."""
        return JobStatus(self.status).is_terminal()


def attempt(wanted: str, statuses: Mapping[str, str]) -> tuple[str, bool]:
    """The id that a request for `wanted` comes down to, and whether it is a new one.

    `statuses` are those of the cluster's jobs, by id.
    A job that failed or was stopped leaves its id behind, as Ray takes no id twice: the next attempt is `wanted`-2, and
    so on.
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


class Jobs:
    """The jobs of the cluster whose dashboard is at an address.

    Args:
        address: http(s)://host:port of the dashboard; host:port of the dashboard or of the cluster itself; `auto` for
            what `connection.named_address` says, or else any cluster of this machine.
            By default what `named_address` says, or else a dashboard on this machine.

    Raises:
        ClusterError: nothing answers there, or it takes no token of ours.
    """

    def __init__(self, address: str | None = None) -> None:
        self._client = connection.connect(address)
        self.address: str = connection.shown(self._client.get_address())
        # Ray keeps it to itself, and has no other way to ask.
        self.ray_version: str = self._client._server_ray_version
        if self.ray_version != ray.__version__:
            log.warning("%s runs Ray %s, this is Ray %s.", self.address, self.ray_version, ray.__version__)

    def list(self) -> Sequence[Job]:
        """The jobs submitted to the cluster, the latest first; those of finished drivers included."""
        with connection.answers(self.address):
            found = self._client.list_jobs()
        jobs = [_job(details) for details in found if details.type == JobType.SUBMISSION]
        return sorted(jobs, key=lambda job: job.started or datetime.now(UTC), reverse=True)

    def get(self, job_id: str) -> Job:
        """The job with this id.

        Raises:
            ClusterError: there is none.
        """
        with connection.answers(self.address):
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
            values: variables of the job's environment, by name; they stay out of sight, see `environment`.

        Raises:
            ClusterError: the cluster does not take the job.
        """
        job_id, is_new = attempt(wanted, {job.id: job.status for job in self.list()})
        if not is_new:
            return job_id, False
        with tempfile.TemporaryDirectory(prefix="retroscan-job-") as folder:
            code.copy(packages, Path(folder))
            if values:
                environment.pack(Path(folder), values)
            until = time.monotonic() + AGENT_S
            with connection.answers(self.address):
                while True:
                    try:
                        self._client.submit_job(
                            entrypoint=command,
                            submission_id=job_id,
                            runtime_env={"working_dir": folder},
                            metadata=dict(metadata),
                        )
                    except RuntimeError as error:
                        # The same request, from elsewhere at the same time.
                        if "already exists" in str(error):
                            return job_id, False
                        # A node's agent is not there yet, or starts again: "please try again later".
                        if "No available agent" not in str(error) or time.monotonic() > until:
                            raise
                        time.sleep(FOLLOW_EVERY_S)
                    else:
                        return job_id, True

    def follow(self, job_id: str, write: Callable[[str], object]) -> Job:
        """The job once it is over; its log, from the beginning, goes to `write` piece by piece.

        Raises:
            ClusterError: the cluster does not answer any more; the job may go on.
        """
        tail = Tail(self._client, job_id, write)
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
                        f"The log of job {job_id} could not be followed any more. "
                        f"Got: {type(error).__name__}: {error}.",
                        "The job may go on: look with `retroscan jobs`, or run the same command to follow it again.",
                    ) from error
            time.sleep(FOLLOW_EVERY_S)

    def stop(self, job_id: str) -> bool:
        """Ask the job to end; False if it was over already.

        Raises:
            ClusterError: there is none.
        """
        with connection.answers(self.address):
            return bool(self._client.stop_job(job_id))


class Tail:
    """A job's log as far as it was read: a connection that broke is taken up where it ended."""

    def __init__(self, client: Any, job_id: str, write: Callable[[str], object]) -> None:
        self.position = 0
        self._client = client
        self._job_id = job_id
        self._write = write

    async def read(self) -> None:
        """Hand on what is new, until the connection ends."""
        # Every connection begins with the log's first line.
        skip = self.position
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
