"""What the capacity model is fed with: measured costs of an image, and the assumptions and clusters of the config."""

from __future__ import annotations

from typing import Any

import numpy as np

from ad_jobs.archive.fetching import FETCH_THREADS
from ad_jobs.results.read import read_run, read_scores
from ad_jobs.specs import CHAPTER_OBJECTS
from cluster.capacity import Assumptions, Costs, NodeType, Timing
from cluster.division import GIB, Node


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
