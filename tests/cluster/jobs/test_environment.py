"""Values sent along with a job: taken in once by its driver, and kept out of what the driver tells Ray."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cluster
from cluster.jobs import code, environment

# What a job's driver does, as JSON of what it then sees; Ray calls its hook by the name in the environment.
DRIVER = """
import importlib, json, os, sys
from cluster.jobs import environment

environment.receive()
said = {"received": os.environ.get("SENT_ONE")}
if hook := os.environ.get("RAY_RUNTIME_ENV_HOOK"):
    module, _, name = hook.rpartition(".")
    given = {"env_vars": {"SENT_ONE": "value", "OTHER": "1"}, "working_dir": "gcs://package-with-the-file.zip"}
    told = getattr(importlib.import_module(module), name)(given)
    give = told.pop("worker_process_setup_hook")
    del os.environ["SENT_ONE"]
    give()
    said |= {"told": told, "given": given, "worker": os.environ["SENT_ONE"]}
print(json.dumps(said | {"ray": "ray" in sys.modules}), flush=True)
# No head is there to forget the workers' function at the end.
os._exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job's working directory, with the code of the cluster in it."""
    code.copy([Path(cluster.__file__).parent], tmp_path)
    return tmp_path


def drive(folder: Path) -> dict[str, Any]:
    """What a driver in the folder says."""
    without = {name: value for name, value in os.environ.items() if name not in ("SENT_ONE", "RAY_RUNTIME_ENV_HOOK")}
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env={**without, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout)
    return said


def test_a_file_of_values_is_private_new_each_time_and_gone_once_read(folder: Path) -> None:
    path = folder / environment.FILE
    environment.pack(folder, {"SENT_ONE": "value"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_bytes()
    assert drive(folder)["received"] == "value"
    assert not path.exists()
    environment.pack(folder, {"SENT_ONE": "value"})
    assert path.read_bytes() != first, "Ray would take the package for the first one, whose file is gone"


def test_where_nothing_was_sent_nothing_is_done(folder: Path) -> None:
    assert drive(folder) == {"received": None, "ray": False}


def test_what_was_received_reaches_the_workers_and_is_not_told_to_ray(folder: Path) -> None:
    environment.pack(folder, {"SENT_ONE": "value"})
    said = drive(folder)
    assert said["told"] == {"env_vars": {"OTHER": "1"}, "working_dir": str(folder)}
    assert said["given"]["env_vars"] == {"SENT_ONE": "value", "OTHER": "1"}
    assert said["worker"] == "value"
    assert not said["ray"], "values are taken in before Ray, which reads the environment, is imported"
