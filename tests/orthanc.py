"""Orthanc, an independent archive of DICOM, on a port of this machine: what does it take in, and give back?

Debian's package `orthanc`; where it is missing the tests that ask it are skipped.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
needed = pytest.mark.skipif(_PROGRAM is None, reason="Orthanc is not installed (Debian: apt-get install orthanc)")
START_S = 60.0


class Orthanc:
    """A running server with a folder of its own; a context manager."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        settings = {
            "Name": "judge",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self._port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
        }
        self._settings = folder / "orthanc.json"
        self._settings.write_text(json.dumps(settings))
        self._log = folder / "orthanc.log"

    def __enter__(self) -> Orthanc:
        with self._log.open("w") as log:
            assert _PROGRAM is not None
            self._process = subprocess.Popen([_PROGRAM, str(self._settings)], stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.ask("system")
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise RuntimeError(f"Orthanc did not start: {self._log.read_text()[-2000:]}") from None
                time.sleep(0.1)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, path: str, data: bytes | None = None) -> bytes:
        """The answer to a GET, or to a POST of `data`."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/{path}", data)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: bytes = answer.read()
        return found

    def json(self, path: str, data: bytes | None = None) -> Any:
        """The same, as values."""
        return json.loads(self.ask(path, data))
