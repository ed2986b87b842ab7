"""Scans on this machine's cores and on logical nodes, to set the capacity model's predictions beside.

Run as a script it is one such scan: SOURCE MODEL OUT NODES CHAPTER_OBJECTS.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ad_jobs.results.read import read_scores
from ad_jobs.results.run import machine, versions
from ad_jobs.scan import scan
from benchmarks.capacity_inputs import assumptions, costs_of
from benchmarks.measuring import cost_of
from benchmarks.scan import make_model, write_archive
from cluster.capacity import NodeType, Prediction, predict
from cluster.division import GIB, Node
from cluster.session import IDLE_WORKER, IDLE_WORKER_MS

TIMES = ("fetch_ms", "decode_ms", "score_ms")
# Of the images in the order of their scoring: after processes have started, before some end.
STEADY = (0.4, 0.95)


class Case(NamedTuple):
    """A scan on this machine that is compared with its prediction."""

    name: str
    # Of benchmarks.scan.
    detector: str
    form: str
    images: int
    # CPUs of each; several are logical nodes on the same cores.
    nodes: tuple[int, ...]
    cores: int
    chapters: int = 1


CASES = (
    Case("2 cores, 2 chapters", "light", "jpeg", 12_000, (2,), 2, chapters=2),
    Case("2 cores", "light", "png", 8000, (2,), 2),
    Case("2 cores", "heavy", "png", 1700, (2,), 2),
    Case("2 cores", "padim", "dicom", 1300, (2,), 2),
    Case("2 cores", "pmad", "jpeg", 4500, (2,), 2),
    Case("1 core", "light", "png", 3600, (1,), 1),
    Case("2 nodes of 1 core", "light", "png", 24_000, (1, 1), 2),
)


def key(case: Case) -> str:
    """The name under which a case's measurement is kept."""
    return f"{case.name}, {case.detector}, {case.form}"


def check(case: Case, work: Path) -> dict[str, Any]:
    """One scan in processes of its own: steady images/s, seconds to the first image, between chapters, and in all."""
    folder = work / "archives" / f"{case.form}-{case.images}"
    write_archive(folder, case.form, case.images)
    model = make_model(work / "models" / case.detector, case.detector)
    with tempfile.TemporaryDirectory(dir=work) as out:
        command = [sys.executable, "-m", "benchmarks.capacity_check", str(folder), model, f"{out}/run"]
        command += [",".join(map(str, case.nodes)), str(-(-case.images // case.chapters))]
        if case.cores < (os.cpu_count() or 1):
            command = ["taskset", "-c", ",".join(map(str, range(case.cores))), *command]
        began = datetime.now(UTC)
        spent = cost_of(command)
        rows = read_scores(f"{out}/run", columns=["object_id", "scored_at", *TIMES])
    seconds = (rows["scored_at"] - began).dt.total_seconds().to_numpy(float)
    chapter = rows["object_id"].to_numpy() // -(-case.images // case.chapters)
    by_chapter = [np.sort(seconds[chapter == number]) for number in range(case.chapters)]
    pauses = [float(after[0] - before[-1]) for before, after in itertools.pairwise(by_chapter)]
    return {
        "images_per_s": float(np.mean([_steady(one) for one in by_chapter])),
        "first_s": float(by_chapter[0][0]),
        "pause_s": float(np.mean(pauses)) if pauses else None,
        "table_ms": {name: float(rows[name].mean()) for name in TIMES},
        "seconds": spent.seconds,
        "cpu_s": spent.cpu_s,
        "machine": machine(),
        "versions": versions(),
    }


def _steady(seconds: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    first, last = (int(share * (len(seconds) - 1)) for share in STEADY)
    return (last - first) / float(seconds[last] - seconds[first])


def scan_here(source: str, model: str, out: str, nodes: list[int], chapter_objects: int) -> None:
    """A scan on one embedded node, or on logical ones."""
    with _ray(nodes) as options:
        scan(source, [model], out, chapter_objects=chapter_objects, **options)


@contextmanager
def _ray(nodes: list[int]) -> Iterator[dict[str, Any]]:
    if len(nodes) == 1:
        yield {"num_cpus": nodes[0]}
        return
    from ray.cluster_utils import Cluster

    # As ray_config.yaml starts nodes.
    os.environ[IDLE_WORKER] = str(IDLE_WORKER_MS)
    cluster = Cluster()
    try:
        for cpus in nodes:
            cluster.add_node(num_cpus=cpus, object_store_memory=1 << 30)
        yield {"address": cluster.address}
    finally:
        cluster.shutdown()


def predicted(case: Case, measured: dict[str, Any], config: dict[str, Any]) -> Prediction:
    """What the model says of a case; the cores of this machine are as fast as those measured."""
    types = [NodeType(Node(cpus, memory=16 * GIB), 1) for cpus in case.nodes]
    costs = costs_of(measured, case.detector, f"{case.form} 512", config)
    return predict(costs, types, assumptions(config, latency_ms=0.0), case.images)


if __name__ == "__main__":
    source, model, out, nodes, chapter_objects = sys.argv[1:]
    scan_here(source, model, out, [int(one) for one in nodes.split(",")], int(chapter_objects))
