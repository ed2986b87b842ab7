"""Faults of processes and machines: the driver, a scoring actor, a fetching worker and a node, each killed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
import scankit as kit
from ray.cluster_utils import Cluster
from s3server import S3Server

from ad_jobs.errors import UsageError
from ad_jobs.results.read import read_run, read_scores
from cluster import storage
from tests.faults.conftest import OBJECTS, PREFIX, asked_for, finish, statement, wait_for
from tests.faults.proxy import Fault, FaultProxy, Request

pytestmark = [pytest.mark.ray, pytest.mark.s3]


class Parts:
    """The parts of a run, wherever it lies, each read once."""

    def __init__(self, out: str) -> None:
        self._folder = storage.join(out, "scores")
        self._objects: dict[str, int] = {}

    def done(self) -> int:
        """Objects that are in them so far."""
        try:
            names = storage.list_names(self._folder)
        except storage.NotFound:
            return 0
        for name in set(names) - set(self._objects):
            if name.endswith(".parquet"):
                data = io.BytesIO(storage.read_bytes(storage.join(self._folder, name)))
                ids = pq.read_table(data, columns=["object_id"])["object_id"]
                self._objects[name] = len(ids.unique())
        return sum(self._objects.values())


def slowly(request: Request) -> Fault | None:
    """Every tenth object comes late, so that there is something to kill."""
    return Fault("slow") if request.method == "GET" and "/good/" in request.key and "5." in request.key else None


@pytest.mark.parametrize(
    ("share", "place"),
    [
        pytest.param(0.1, "disk", marks=pytest.mark.full),
        (0.5, "s3"),
        pytest.param(0.9, "disk", marks=pytest.mark.full),
        pytest.param(0.99, "disk", marks=pytest.mark.full),
    ],
)
def test_the_driver_is_killed(
    share: float,
    place: str,
    s3: S3Server,
    proxy: FaultProxy,
    source: str,
    model: str,
    undisturbed: pd.DataFrame,
    tmp_path: Path,
) -> None:
    out = s3.uri(f"faults/driver-{share}") if place == "s3" else str(tmp_path / "run")
    # Of the manifest: 99 % are done while it is held back.
    last = "good/multi frame #1?.dcm"

    def rule(request: Request) -> Fault | None:
        held = share == 0.99 and request.key.endswith(last) and request.method == "GET"
        return Fault("error", 503, "SlowDown") if held else slowly(request)

    proxy.rule = rule
    process = kit.in_a_process(statement(source, model, out), stderr=subprocess.PIPE)
    # What is done together with the object that is held back is held back with it.
    enough = min(share * len(OBJECTS), len(OBJECTS) - 4)
    parts = Parts(out)
    wait_for(lambda: parts.done() >= enough, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    # Its workers may still be asking for something; some of Ray stays longer.
    psutil.wait_procs(family, timeout=20.0)
    proxy.rule = lambda _: None
    with pytest.raises(UsageError, match="Run the same scan command again"):
        read_run(out)
    half = read_scores(out, allow_unfinished=True)
    done = set(half["uri"].str.removeprefix(f"{source}/"))
    assert enough <= len(done) < len(OBJECTS)

    # Requests of the killed process that are still under way.
    time.sleep(1.0)
    since = len(proxy.requests)
    finish(kit.in_a_process(statement(source, model, out), stderr=subprocess.PIPE))
    kit.assert_as_undisturbed(out, undisturbed)
    asked = asked_for(proxy, since)
    assert set(asked.values()) == {1}
    assert set(asked) == set(OBJECTS) - done
    assert proxy.listings(PREFIX, since) == 0
    folders = {name.partition("/")[0] for name in storage.list_names(out)}
    # What only an unfinished run needs is gone.
    assert folders == {"calibrations", "heatmaps", "manifest", "run.json", "scores"}


def worker(process: subprocess.Popen[bytes], name: str) -> psutil.Process | None:
    """A process below `process` whose title has `name`, as Ray writes it while it works."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and name in title:
            return child
    return None


def kill_a_worker(name: str, process: subprocess.Popen[bytes], parts: Parts, done: int) -> None:
    """Kill one whose title has `name`, as soon as so many objects are done."""
    wait_for(lambda: parts.done() >= done, process)
    found: list[psutil.Process] = []
    wait_for(lambda: found.extend(filter(None, [worker(process, name)])) or found, process)
    found[0].kill()


def test_workers_are_killed(
    proxy: FaultProxy, source: str, model: str, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    """A scoring actor, and later one that fetches."""
    out = tmp_path / "run"
    proxy.rule = slowly
    process = kit.in_a_process(statement(source, model, str(out)), stderr=subprocess.PIPE)
    parts = Parts(str(out))
    for name, done in (("MapWorker", 8), ("_fetch", 24)):
        kill_a_worker(name, process, parts, done)
    proxy.rule = lambda _: None
    finish(process)
    kit.assert_as_undisturbed(str(out), undisturbed)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with a CPU and two workers with two."""
    # Ray's own settings give a silent node half a minute; here it is missed after three seconds.
    noticed = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": noticed}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        made.add_node(num_cpus=2, object_store_memory=200 << 20)
        made.add_node(num_cpus=2, object_store_memory=200 << 20)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


@pytest.mark.full
def test_a_node_is_removed(
    cluster: Cluster, proxy: FaultProxy, source: str, model: str, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    proxy.rule = slowly
    process = kit.in_a_process(statement(source, model, str(out), address=cluster.address), stderr=subprocess.PIPE)
    parts = Parts(str(out))
    wait_for(lambda: parts.done() >= 8, process)
    node = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)[0]
    cluster.remove_node(node, allow_graceful=False)
    proxy.rule = lambda _: None
    finish(process)
    kit.assert_as_undisturbed(str(out), undisturbed)
