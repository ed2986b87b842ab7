"""A cluster of three nodes, `ray start` processes with a token, used from fresh shells; each job loses a node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scankit as kit
import torch
from rayhead import RayHead, RayWorker

from ad_jobs.scan import scan
from ad_jobs.scoring.model_store import open_model

pytestmark = [pytest.mark.ray, pytest.mark.full]

ROOT = Path(__file__).parents[2]
WAIT_S = 400.0
OBJECTS = kit.good_objects(400) | {name: data for name, (data, _) in kit.bad_objects().items()}
# Small, so that there is work for three actors.
BATCH = "--batch-size=4"


class Cluster:
    """A head and two workers of one CPU each; a worker that is lost is made up for."""

    def __init__(self) -> None:
        self.head = RayHead(cpus=1, loses_nodes=True)
        self._workers: list[RayWorker] = []
        self._started = 0

    def start(self) -> None:
        self.head.start()
        self.fill()

    def fill(self) -> None:
        """Two workers again."""
        while len(self._workers) < 2:
            self._started += 1
            self._workers.append(RayWorker(self.head, f"127.0.0.{2 + self._started}", 1))

    def at_work(self, task: str) -> int:
        """The nodes that have a process whose title has `task`."""
        return sum(task in node.titles() for node in (self.head, *self._workers))

    def lose(self, task: str) -> None:
        """Kill a worker on which a process works whose title has `task`."""
        found = [worker for worker in self._workers if task in worker.titles()]
        assert found, f"nobody does {task}: {[worker.titles() for worker in self._workers]}"
        found[0].kill()
        found[0].stop()
        self._workers.remove(found[0])

    def stop(self) -> None:
        for node in (*self._workers, self.head):
            node.stop()

    def run(self, *words: object, log: Path, address: str | None = None) -> subprocess.Popen[bytes]:
        """retroscan with these words in a shell of its own, which knows the cluster's token; stderr to `log`."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        command = [sys.executable, "-m", "ad_jobs", *map(str, words)]
        if address is not None:
            command += ["--address", address]
        with log.open("wb") as stderr:
            return subprocess.Popen(
                command, cwd=ROOT, env={**own, **self.head.env}, stdout=subprocess.DEVNULL, stderr=stderr
            )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def nodes(cluster: Cluster) -> Cluster:
    """The cluster with all of its three nodes."""
    cluster.fill()
    return cluster


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return kit.write_archive(tmp_path_factory.mktemp("archive"), OBJECTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return kit.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(cluster: Cluster, archive: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table of a scan on a Ray of its own, on the same machine as the cluster: they do each other no harm."""
    del cluster
    out = str(tmp_path_factory.mktemp("alone") / "run")
    scan(archive, [model], out, batch_size=4, num_cpus=1)
    return kit.table(out)


def wait_for(reached: Iterator[bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask until it is so; the process must still be at work then."""
    deadline = time.monotonic() + WAIT_S
    while not next(reached):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    assert process.poll() is None, log.read_text()


def parts(out: Path) -> Iterator[bool]:
    while True:
        yield len(list(kit.parts(out))) >= 3


def checkpoints(out: Path) -> Iterator[bool]:
    while True:
        yield any(
            b"checkpoint_dir_name" in snapshot.read_bytes()
            for snapshot in (out / "fit").glob("*/checkpoint_manager_snapshot.json")
        )


def test_a_fit_of_two_workers(nodes: Cluster, tmp_path: Path) -> None:
    normal, out, log = tmp_path / "normal", tmp_path / "model", tmp_path / "log"
    normal.mkdir()
    for number in range(24):
        (normal / f"{number:02d}.png").write_bytes(kit.png(number))
    words = ("fit", "--detector=mkd", f"--normal={normal}", "--size=64", "--epochs=40")

    process = nodes.run(*words, f"--out={out}", "--workers=2", log=log, address=nodes.head.cluster_address)
    wait_for(checkpoints(out), process, log)
    nodes.lose("RayTrainWorker")
    assert process.wait(WAIT_S) == 0, log.read_text()
    curve = json.loads((out / "fit" / "curve.json").read_text())
    assert [row["epoch"] for row in curve if row["phase"] == "distil"] == list(range(1, 41))

    assert nodes.run(*words, f"--out={tmp_path / 'alone'}", log=log).wait(WAIT_S) == 0, log.read_text()
    ours, alone = open_model(str(out)), open_model(str(tmp_path / "alone"))
    assert (ours.record["workers"], alone.record["workers"]) == (2, 1)
    images = torch.from_numpy(np.stack([kit.picture(number, 64) for number in range(100, 108)])).float()
    images = images.unsqueeze(1).repeat(1, 3, 1, 1)
    # Not to the bit: float32 sums over other shares and batches, whose last digit Adam carries along.
    torch.testing.assert_close(
        ours.detector.score(images).image, alone.detector.score(images).image, rtol=0.05, atol=0.0
    )


def test_a_scan_of_three_actors(nodes: Cluster, archive: str, model: str, alone: pd.DataFrame, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    words = ("scan", archive, f"--model={model}", f"--out={out}", BATCH)
    process = nodes.run(*words, log=log, address=nodes.head.cluster_address)
    wait_for(parts(out), process, log)
    assert nodes.at_work("MapWorker") == 3
    nodes.lose("MapWorker")
    assert process.wait(WAIT_S) == 0, log.read_text()
    kit.assert_as_undisturbed(str(out), alone)


def test_a_scan_as_a_job(nodes: Cluster, archive: str, model: str, alone: pd.DataFrame, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    words = ("scan", archive, f"--model={model}", f"--out={out}", BATCH)
    process = nodes.run("submit", f"--address={nodes.head.address}", "--", *words, log=log)
    wait_for(parts(out), process, log)
    nodes.lose("MapWorker")
    assert process.wait(WAIT_S) == 0, log.read_text()
    kit.assert_as_undisturbed(str(out), alone)


def test_a_wrong_token(cluster: Cluster, archive: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    refused = subprocess.run(
        [
            sys.executable,
            "-m",
            "ad_jobs",
            "scan",
            archive,
            "--model",
            model,
            "--out",
            tmp_path / "run",
            "--address",
            cluster.head.cluster_address,
        ],
        cwd=ROOT,
        env={**own, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert refused.returncode == 1
    assert "The cluster takes only those with its token." in refused.stderr
    assert "RAY_AUTH_TOKEN_PATH" in refused.stderr
    assert "Traceback" not in refused.stderr
