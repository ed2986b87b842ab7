"""Real Ray nodes for tests: `ray start` processes on loopback, with a token, and ports and folders of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

# On a machine that is busy.
START_S = 300.0
END_S = 30.0
# Loopback all the same; Ray takes 127.0.0.1 for an address of the network.
NODE_IP = "127.0.0.2"
STORE_BYTES = 128 << 20
# Ray gives a silent node half a minute; where nodes are lost it is missed after three seconds. Not elsewhere: a busy
# machine keeps a live node silent as long.
NOTICED = {
    "RAY_health_check_initial_delay_ms": "10000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class _Node:
    """A `ray start` process with a folder and ports of its own."""

    def __init__(self, ip: str, token: Path | None = None) -> None:
        # Not below pytest's folder: sockets lie in here, and a socket's path has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="rs-ray-", dir="/tmp"))
        self._ip = ip
        self.token = token or self.folder / "token"
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        self._agent, *self._ports = _free_ports(ip, 4)
        self._settings = {
            # Nobody waits for what still runs.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_raylet_start_wait_time_s": f"{START_S:.0f}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self, *options: str, cpus: int) -> None:
        beside = Path(sys.executable).parent
        without = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        agent_grpc, metrics, runtime_env = self._ports
        with (self.folder / "node.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    beside / "ray",
                    "start",
                    "--block",
                    "--disable-usage-stats",
                    f"--node-ip-address={self._ip}",
                    f"--dashboard-agent-listen-port={self._agent}",
                    f"--dashboard-agent-grpc-port={agent_grpc}",
                    f"--metrics-export-port={metrics}",
                    f"--runtime-env-agent-port={runtime_env}",
                    "--min-worker-port=0",
                    "--max-worker-port=0",
                    f"--temp-dir={self.folder / 'r'}",
                    f"--num-cpus={cpus}",
                    f"--object-store-memory={STORE_BYTES}",
                    *options,
                ],
                env={
                    **without,
                    **self.env,
                    # Whose `python` a job's command begins with.
                    "PATH": f"{beside}:{os.environ['PATH']}",
                    **self._settings,
                },
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                start_new_session=True,
            )
        until = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > until or self._process.poll() is not None:
                self.stop(keep=True)
                raise RuntimeError(f"No Ray node at {self._ip}:\n{self.log()[-3000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        """Whether the node's agent is there, which comes last."""
        try:
            socket.create_connection((self._ip, self._agent), 5).close()
        except OSError:
            return False
        return True

    def log(self) -> str:
        """What `ray start` said."""
        return (self.folder / "node.log").read_text(errors="replace")

    def titles(self) -> str:
        """What the node's processes call themselves, a line each."""
        assert self._process is not None
        found = []
        for child in psutil.Process(self._process.pid).children(recursive=True):
            # It ended in between.
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(" ".join(child.cmdline()))
        return "\n".join(found)

    def stop(self, *, keep: bool = False) -> None:
        """End the node by its pid; it ends what it started. Its folder goes too, unless it is to be kept."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                # It leads a session of its own.
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


class RayWorker(_Node):
    """A node that joined a head's cluster."""

    def __init__(self, head: RayHead, ip: str, cpus: int) -> None:
        super().__init__(ip, head.token)
        self._start(f"--address={head.cluster_address}", cpus=cpus)

    def kill(self) -> None:
        """End every process of the node at once and without grace, as a machine is lost."""
        assert self._process is not None
        members = [psutil.Process(self._process.pid)]
        members += members[0].children(recursive=True)
        for member in members:
            # So that none sees another one end.
            member.suspend()
        for member in members:
            member.kill()
        self._process.wait()
        self._process = None


class RayHead(_Node):
    """A running head: `address` of its dashboard, `cluster_address` of itself, `folder` with all it writes.

    `env` is what a client needs. With `loses_nodes` it misses a node soon that is gone.
    """

    def __init__(self, cpus: int = 2, *, loses_nodes: bool = False) -> None:
        super().__init__(NODE_IP)
        if loses_nodes:
            self._settings |= NOTICED
        self.token.touch(0o600)
        self.token.write_text(secrets.token_hex(32))
        cluster, self._client = _free_ports(NODE_IP, 2)
        (self._dashboard,) = _free_ports("127.0.0.1", 1)
        self.cluster_address = f"{NODE_IP}:{cluster}"
        self.address = f"http://127.0.0.1:{self._dashboard}"
        self._cpus = cpus
        self._authorization = {"Authorization": f"Bearer {self.token.read_text()}"}

    def start(self) -> None:
        """Start the head, and return once it takes jobs."""
        self._start(
            "--head",
            f"--port={self.cluster_address.partition(':')[2]}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self._dashboard}",
            f"--ray-client-server-port={self._client}",
            cpus=self._cpus,
        )

    def _answers(self) -> bool:
        """Whether a job can be sent: the dashboard hands it to the node's agent."""
        if not super()._answers():
            return False
        request = urllib.request.Request(f"{self.address}/api/version", headers=self._authorization)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


def _free_ports(ip: str, count: int) -> list[int]:
    # All at once, so that they differ.
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind((ip, 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
