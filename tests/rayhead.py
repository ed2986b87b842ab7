"""A real Ray head for tests of jobs: `ray start` in a process of its own, on loopback, with a token and its own ports."""

from __future__ import annotations

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

START_S = 300.0  # on a machine that is busy
END_S = 30.0
NODE_IP = "127.0.0.2"  # loopback all the same; Ray takes 127.0.0.1 for an address of the network


class RayHead:
    """A running head: `address` of its dashboard, `cluster_address` of itself, `folder` with all it writes.

    `env` is what a client needs.
    """

    def __init__(self) -> None:
        # Not below pytest's folder: sockets lie in here, and a socket's path has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="rs-ray-", dir="/tmp"))
        token = self.folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        cluster, dashboard, *self._ports = _free_ports(7)
        self.cluster_address = f"{NODE_IP}:{cluster}"
        self.address = f"http://127.0.0.1:{dashboard}"
        self._dashboard = dashboard
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self._authorization = {"Authorization": f"Bearer {token.read_text()}"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the head, and return once it takes jobs."""
        beside = Path(sys.executable).parent
        without = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        agent, agent_grpc, metrics, client, runtime_env = self._ports
        with (self.folder / "head.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    beside / "ray", "start", "--head", "--block", "--disable-usage-stats",
                    f"--node-ip-address={NODE_IP}",
                    f"--port={self.cluster_address.partition(':')[2]}",
                    "--dashboard-host=127.0.0.1",
                    f"--dashboard-port={self._dashboard}",
                    f"--dashboard-agent-listen-port={agent}",
                    f"--dashboard-agent-grpc-port={agent_grpc}",
                    f"--metrics-export-port={metrics}",
                    f"--ray-client-server-port={client}",
                    f"--runtime-env-agent-port={runtime_env}",
                    "--min-worker-port=0",
                    "--max-worker-port=0",
                    f"--temp-dir={self.folder / 'r'}",
                    "--num-cpus=2",
                    f"--object-store-memory={128 << 20}",
                ],
                env={
                    **without,
                    **self.env,
                    "PATH": f"{beside}:{os.environ['PATH']}",  # whose `python` a job's command begins with
                    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody waits for what still runs
                },
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > until or self._process.poll() is not None:
                self.stop(keep=True)
                raise RuntimeError(f"No Ray head at {self.address}:\n{self.log()[-3000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        """Whether a job can be sent: the dashboard hands it to the node's agent, which is there a little later."""
        try:
            socket.create_connection((NODE_IP, self._ports[0]), 5).close()
        except OSError:
            return False
        request = urllib.request.Request(f"{self.address}/api/version", headers=self._authorization)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def log(self) -> str:
        """What `ray start` said."""
        return (self.folder / "head.log").read_text(errors="replace")

    def stop(self, *, keep: bool = False) -> None:
        """End the head by its pid; it ends what it started. Its folder goes too, unless it is to be kept."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a session of its own
                self._process.wait()
            self._process = None
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]  # all at once, so that they differ
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
