"""How many images per second a cluster scans, what limits it, and what an archive costs: predicted, and checked here.

    PYTHONPATH=tests python -m benchmarks.capacity [--config FILE] [--run RUN ...] [--check] [--work FOLDER]

Predicts for the clusters and archives of the config, from the costs that benchmarks.stage_costs measured and, with `--run`, from
finished runs. `--check` scans on this machine's cores and on logical nodes, and sets what was predicted beside it. Writes
benchmarks/results/capacity.md, unless config or runs are your own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import yaml

from ad_jobs.archive.fetching import FETCH_THREADS
from ad_jobs.results.read import read_run, read_scores
from ad_jobs.results.run import machine, versions
from ad_jobs.scan import scan
from ad_jobs.scanning import run_state
from ad_jobs.scanning.chapters import CHAPTER_OBJECTS
from benchmarks.capacity_model import Assumptions, Costs, NodeType, Prediction, Timing, hours, predict, price_per_hour
from benchmarks.measuring import cost_of
from benchmarks.scan import make_model, write_archive
from benchmarks.stage_costs import RESULT as COSTS
from cluster.division import GIB, Node
from cluster.session import IDLE_WORKER, IDLE_WORKER_MS

RESULTS = Path(__file__).parent / "results"
CONFIG = Path(__file__).parent / "capacity.yaml"
CHECK = RESULTS / "capacity" / "check.json"
TIMES = ("fetch_ms", "decode_ms", "score_ms")
STEADY = (0.4, 0.95)  # of the images in the order of their scoring: after processes have started, before some end


class Case(NamedTuple):
    """A scan on this machine that is compared with its prediction."""

    name: str
    detector: str  # of benchmarks.scan
    form: str
    images: int
    nodes: tuple[int, ...]  # CPUs of each; several are logical nodes on the same cores
    cores: int
    chapters: int = 1


CASES = (
    Case("2 cores, 2 chapters", "light", "jpeg", 12_000, (2,), 2, chapters=2),
    Case("2 cores", "light", "png", 8000, (2,), 2),
    Case("2 cores", "heavy", "png", 1700, (2,), 2),
    Case("2 cores", "fyd", "dicom", 1300, (2,), 2),
    Case("2 cores", "pmad", "jpeg", 4500, (2,), 2),
    Case("1 core", "light", "png", 3600, (1,), 1),
    Case("2 nodes of 1 core", "light", "png", 24_000, (1, 1), 2),
)


# --- Costs and assumptions


def costs_of(measured: dict[str, Any], detector: str, stored: str, config: dict[str, Any]) -> Costs:
    """Of a detector on objects of one format and size, as measured from local files."""
    one, other = measured["objects"][stored], measured["detectors"][detector]
    return Costs(
        object_bytes=one["bytes"],
        fetch=Timing(**one["fetch"]),
        decode=Timing(**one["decode"]),
        score=Timing(**other["score"]),
        write_cpu_ms=other["write_cpu_ms"],
        gpu_score=Timing(config["gpu_ms"], config["gpu_cpu_ms"]),
    )


def costs_of_run(run: str, measured: dict[str, Any]) -> Costs:
    """Of a finished run's first model, by its table's times, which stages took that had to share the cores.

    What the table does not tell, the CPU of a GET and of writing, is taken from the measured costs.
    """
    model_id = read_run(run).models[0].model_id
    rows = read_scores(run, columns=["model_id", "status", "bytes", "fetch_ms", "decode_ms", "score_ms"])
    rows = rows[(rows["model_id"] == model_id) & (rows["status"] == "scored")]
    mean = rows[["bytes", "fetch_ms", "decode_ms", "score_ms"]].astype(float).mean()
    write = float(np.mean([one["write_cpu_ms"] for one in measured["detectors"].values()]))
    return Costs(
        object_bytes=mean["bytes"],
        fetch=Timing(mean["fetch_ms"], measured["s3"]["cpu_ms"]),
        decode=Timing(mean["decode_ms"], mean["decode_ms"]),
        score=Timing(mean["score_ms"], mean["score_ms"]),
        write_cpu_ms=write,
    )


def from_s3(costs: Costs, measured: dict[str, Any]) -> Costs:
    """The same with a GET from S3 in place of a file's reading."""
    return costs._replace(fetch=Timing(0.0, costs.fetch.cpu_ms + measured["s3"]["cpu_ms"]))


def assumptions(config: dict[str, Any], *, latency_ms: float) -> Assumptions:
    """Those of the config; the code's own numbers are the code's."""
    return Assumptions(
        latency_ms=latency_ms,
        fetch_threads=FETCH_THREADS,
        ray_cpu_ms=config["ray_cpu_ms"],
        ray_cores=config["ray_cores"],
        task_ms=config["task_ms"],
        start_s=config["start_s"],
        chapter_s=config["chapter_s"],
        chapter_objects=CHAPTER_OBJECTS,
    )


def types_of(cluster: list[dict[str, Any]]) -> list[NodeType]:
    """The node types of one cluster of the config; 4 GiB for each CPU where it says nothing of memory."""
    return [
        NodeType(
            Node(one["cpus"], one.get("gpus", 0), int(one.get("memory_gib", 4 * one["cpus"]) * GIB)),
            one["count"],
            one.get("price_per_hour", 0.0),
            one.get("network_gbit_per_s", 10) * 1e9 / 8,
            one.get("speed", 1.0),
        )
        for one in cluster
    ]


# --- The check


def check(case: Case, work: Path) -> dict[str, Any]:
    """One scan in processes of its own: steady images/s, seconds to the first image, between chapters, and in all."""
    folder = work / "archives" / f"{case.form}-{case.images}"
    write_archive(folder, case.form, case.images)
    model = make_model(work / "models" / case.detector, case.detector)
    with tempfile.TemporaryDirectory(dir=work) as out:
        command = [sys.executable, "-m", "benchmarks.capacity", "--scan", str(folder), model, f"{out}/run"]
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
    with patch.object(run_state, "CHAPTER_OBJECTS", chapter_objects), _ray(nodes) as options:
        scan(source, [model], out, **options)


@contextmanager
def _ray(nodes: list[int]) -> Iterator[dict[str, Any]]:
    if len(nodes) == 1:
        yield {"num_cpus": nodes[0]}
        return
    from ray.cluster_utils import Cluster

    os.environ[IDLE_WORKER] = str(IDLE_WORKER_MS)  # as ray_config.yaml starts nodes
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


# --- The page


def page(config: dict[str, Any], measured: dict[str, Any], runs: list[str]) -> list[str]:
    """The lines of capacity.md."""
    assumed = config["assumptions"]
    lines = [
        "# What a cluster achieves",
        "",
        "`python -m benchmarks.capacity`: the model of `benchmarks/capacity_model.py`, which divides a cluster as a scan does, on the "
        f"costs of `benchmarks/stage_costs.py`, measured on {measured['machine']['cpu']}, {measured['machine']['cores']} cores, "
        f"torch {measured['versions']['torch']}, clocks with one core at work, CPU with all of them.",
        "",
        "## Costs of an image, ms",
        "",
        *_table(
            ("objects", "KiB", "GET", "GET, CPU", "decode", "decode, CPU"),
            [
                (
                    name,
                    f"{one['bytes'] / 1024:.0f}",
                    *(f"{one[stage][unit]:.2f}" for stage in ("fetch", "decode") for unit in ("ms", "cpu_ms")),
                )
                for name, one in measured["objects"].items()
            ],
        ),
        "",
        *_table(
            ("detector", "score", "score, CPU", "write, CPU"),
            [
                (name, f"{one['score']['ms']:.2f}", f"{one['score']['cpu_ms']:.2f}", f"{one['write_cpu_ms']:.2f}")
                for name, one in measured["detectors"].items()
            ],
        ),
        "",
        "## Assumed",
        "",
        *(f"* {text}" for text in _assumed_texts(assumed, measured)),
    ]
    if CHECK.exists():
        lines += ["", "## Checked on this machine", "", *_check_lines(json.loads(CHECK.read_text()), measured, config)]
    lines += ["", "## Predicted, objects in S3", "", *_prediction_lines(config, measured, runs)]
    return lines


def _assumed_texts(assumed: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    return [
        f"A GET takes {assumed['latency_ms']} ms, of which {FETCH_THREADS} are under way in every fetch task, and "
        f"{measured['s3']['cpu_ms']:.1f} ms of CPU (measured). Stores answer as fast as they are asked, up to the nodes' "
        "network.",
        f"Ray takes {assumed['ray_cpu_ms']} ms of CPU for each image, {assumed['ray_cores']} of a core on every node, "
        f"{assumed['task_ms']} ms between a fetch task and the next, {assumed['start_s']} s until the first image is scored, "
        f"and {assumed['chapter_s']} s between chapters of {CHAPTER_OBJECTS:,} objects.",
        "A cluster's core is one of the measured machine (`speed` of a node says otherwise), an object is one frame, nothing "
        "fails.",
        f"A GPU scores an image in {assumed['gpu_ms']} ms and {assumed['gpu_cpu_ms']} ms of CPU: a supposition, none was at "
        "hand.",
        "Prices are those of the config: round figures, no offer.",
    ]


def _check_lines(found: dict[str, Any], measured: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    rows = []
    for case in CASES:
        one = found.get(_key(case))
        if one is None:
            continue
        said = predicted(case, measured, config["assumptions"])
        rows.append(
            (
                case.name,
                case.detector,
                f"{case.form} 512",
                case.images,
                f"{said.images_per_s:.1f}",
                f"{one['images_per_s']:.1f}",
                f"{said.images_per_s / one['images_per_s'] - 1:+.0%}",
                said.bottleneck,
                f"{one['first_s']:.0f}",
                "–" if one["pause_s"] is None else f"{one['pause_s']:.1f}",
                f"{one['seconds']:.0f}",
            )
        )
    yield (
        "Steady images per second, of local files, by the times at which images were scored; logical nodes share this "
        "machine's cores."
    )
    yield ""
    yield from _table(
        (
            "on",
            "detector",
            "objects",
            "images",
            "predicted images/s",
            "measured",
            "off",
            "bottleneck",
            "first image after s",
            "pause between chapters s",
            "seconds in all",
        ),
        rows,
    )


def _prediction_lines(config: dict[str, Any], measured: dict[str, Any], runs: list[str]) -> Iterator[str]:
    given = config["assumptions"]
    assumed = assumptions(given, latency_ms=given["latency_ms"])
    archives = [
        (
            f"{one['detector']}, {one['object']}",
            from_s3(costs_of(measured, one["detector"], one["object"], given), measured),
        )
        for one in config["archives"]
    ]
    archives += [(f"run {run}", costs_of_run(run, measured)) for run in runs]
    rows = []
    for name, costs in archives:
        for cluster, members in config["clusters"].items():
            types = types_of(members)
            if costs.gpu_score is None and any(one.node.gpus for one in types):
                continue
            said = predict(costs, types, assumed)
            figures = []
            for objects in config["objects"]:
                long = hours(objects, said.images_per_s, assumed)
                figures.append(f"{long:,.1f} h, {long * price_per_hour(types):,.0f}")
            rows.append((name, cluster, f"{said.images_per_s:,.0f}", said.bottleneck, *figures))
    heads = [f"{objects / 1e6:g} M: hours, price" for objects in config["objects"]]
    yield from _table(("detector and objects", "cluster", "images/s", "bottleneck", *heads), rows)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(map(str, row))} |"


def _key(case: Case) -> str:
    return f"{case.name}, {case.detector}, {case.form}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--run", action="append", default=[], help="a finished run whose costs are used too")
    parser.add_argument("--check", action="store_true", help="scan here, where that is not done yet")
    parser.add_argument("--only", default="", help="check only cases whose name contains this text")
    parser.add_argument("--work", type=Path, default=Path("build/scan"))
    parser.add_argument("--scan", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.scan:
        source, model, out, nodes, chapter = given.scan
        scan_here(source, model, out, [int(one) for one in nodes.split(",")], int(chapter))
        return
    if given.check:
        work = given.work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        found = json.loads(CHECK.read_text()) if CHECK.exists() else {}
        for case in CASES:
            if _key(case) in found or given.only not in _key(case):
                continue
            start = time.perf_counter()
            found[_key(case)] = check(case, work)
            CHECK.write_text(json.dumps(found, indent=1) + "\n")
            print(_key(case), f"{time.perf_counter() - start:.0f} s", found[_key(case)]["images_per_s"], flush=True)
    lines = page(yaml.safe_load(given.config.read_text()), json.loads(COSTS.read_text()), given.run)
    if given.config == CONFIG and not given.run:  # else it is a user's own
        (RESULTS / "capacity.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
