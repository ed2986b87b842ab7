"""What one image costs in each stage of a scan, each stage measured alone: for benchmarks.capacity.

    PYTHONPATH=tests python -m benchmarks.stage_costs [--work FOLDER]

Objects (format and side in pixels): fetching and decoding as one fetch task does them, from local files.
S3: what the client takes for a GET, its server on the same machine.
Detectors: an actor's work on decoded images, and writing what comes of it.
Milliseconds on the clock of one core while the others idle, as some decoders use more than one; and of CPU, the
decoder's own process included, while every core does the same, as cores slow each other down.
Writes benchmarks/results/capacity/costs.json; run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch

from ad_jobs.archive.fetching import Source, fetch_all
from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine, versions
from ad_jobs.scanning.judgement import Judgement, ModelUse
from ad_jobs.scanning.stages import prepare_objects, score_objects
from ad_jobs.scanning.table import write_part
from ad_jobs.scoring.model_store import open_model
from ad_jobs.scoring.scorer import Scorer
from benchmarks.scan import MODELS, encoded, make_model

RESULT = Path(__file__).parent / "results" / "capacity" / "costs.json"
# How many, by side in pixels.
OBJECTS = {512: 96, 2048: 16}
FORMATS = ("png", "jpeg", "dicom")
BATCH = 32
# Of other detectors: 10.
BATCHES = {"heavy": 3}
# The fastest counts: whatever else the machine does only adds.
REPEATS = 3
INPUT_PX = 64
# The barrier that this process shares with its copies on the other cores.
_together: list[Any] = []


def spent(work: Callable[[], Any], child: psutil.Process | None = None) -> tuple[float, float]:
    """(seconds on the clock, CPU-seconds of this process and of `child`) of the fastest of some repetitions.

    The copies of this process begin each repetition together.
    """

    def child_s() -> float:
        if child is None:
            return 0.0
        times = child.cpu_times()
        return float(times.user + times.system)

    found = []
    for _ in range(REPEATS):
        for barrier in _together:
            barrier.wait(timeout=300)
        start, cpu = time.perf_counter(), time.process_time() + child_s()
        work()
        found.append((time.perf_counter() - start, time.process_time() + child_s() - cpu))
    return min(found)


def object_costs(form: str, side: int, folder: Path) -> dict[str, Any]:
    """Of one format and size, from local files."""
    count = OBJECTS[side]
    sources = []
    for number in range(count):
        path = folder / f"{number}.{form}"
        path.write_bytes(encoded(number % 16, form, side))
        sources.append(Source(number, str(path), path.stat().st_size, None))
    policy, limits = PixelPolicy(channels=3, height_px=INPUT_PX, width_px=INPUT_PX), Limits()
    manifest = pa.Table.from_pylist([source._asdict() for source in sources])
    with GuardedDecoder() as decoder:
        # Starts the child.
        prepare_objects(manifest.slice(0, 2), [policy], limits, decoder, Identifiers(), [])
        gets = [fetched.fetch_ms for fetched in fetch_all(sources, limits.max_bytes)]
        _, fetch_cpu_s = spent(lambda: list(fetch_all(sources, limits.max_bytes)))
        clock_s, cpu_s = spent(
            lambda: prepare_objects(manifest, [policy], limits, decoder, Identifiers(), []), psutil.Process(decoder.pid)
        )
    return {
        "bytes": sum(source.bytes or 0 for source in sources) / count,
        "fetch": {"ms": float(np.median(gets)), "cpu_ms": 1e3 * fetch_cpu_s / count},
        "decode": {"ms": 1e3 * clock_s / count, "cpu_ms": 1e3 * (cpu_s - fetch_cpu_s) / count},
    }


def s3_costs(folder: Path) -> dict[str, float]:
    """Of one GET of a PNG of 512 px: on the clock with others beside it, and of the client's CPU."""
    from s3server import S3Server

    count = OBJECTS[512]
    archive = folder / "archive"
    archive.mkdir()
    for number in range(count):
        (archive / f"{number}.png").write_bytes(encoded(number % 16, "png", 512))
    # A short path: sockets lie in it.
    server = S3Server(Path(tempfile.mkdtemp(prefix="rs-s3-")))
    os.environ.update(server.env)
    server.start()
    try:
        source = server.put_folder(archive, "archive")
        sources = [Source(number, f"{source}/{number}.png") for number in range(count)]
        limit = Limits().max_bytes
        gets = [fetched.fetch_ms for fetched in fetch_all(sources, limit)]
        _, cpu_s = spent(lambda: list(fetch_all(sources, limit)))
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)
    return {"ms": float(np.median(gets)), "cpu_ms": 1e3 * cpu_s / count}


def detector_costs(name: str, model: str, folder: Path) -> dict[str, Any]:
    """Of one detector of benchmarks.scan: scoring, and writing, heatmaps of what is flagged included."""
    opened = open_model(model)
    use = ModelUse(Judgement.of(opened, "flagged"), 0)
    images = BATCH * BATCHES.get(name, 10)
    prepared = _prepared(folder, opened.policy, images)
    scorer = Scorer(opened.detector, batch_size=BATCH, threads=1)

    def score() -> pa.Table:
        return pa.concat_tables(
            score_objects(prepared.slice(first, BATCH), [opened.policy], [(scorer, use)])
            for first in range(0, images, BATCH)
        )

    scored = score()
    clock_s, cpu_s = spent(score)
    _, write_s = spent(lambda: write_part(scored, str(folder / "run"), "0" * 12, 0, [use]))
    return {
        "score": {"ms": 1e3 * clock_s / images, "cpu_ms": 1e3 * cpu_s / images},
        "write_cpu_ms": 1e3 * write_s / images,
    }


def _prepared(folder: Path, policy: PixelPolicy, count: int) -> pa.Table:
    """So many decoded objects."""
    rows = []
    for number in range(count):
        path = folder / f"{number % BATCH}.png"
        if number < BATCH:
            path.write_bytes(encoded(number, "png", 256))
        rows.append(Source(number, str(path), path.stat().st_size, None)._asdict())
    with GuardedDecoder() as decoder:
        return prepare_objects(pa.Table.from_pylist(rows), [policy], Limits(), decoder, Identifiers(), [])


def measure_copy(models: dict[str, str], barrier: Any, answers: Any) -> None:
    """One core's measurements, put into `answers`."""
    _together.append(barrier)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"objects": {}, "detectors": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for side in OBJECTS:
            for form in FORMATS:
                folder = Path(scratch) / f"{form}-{side}"
                folder.mkdir()
                found["objects"][f"{form} {side}"] = object_costs(form, side, folder)
        for name, model in models.items():
            folder = Path(scratch) / name
            folder.mkdir()
            found["detectors"][name] = detector_costs(name, model, folder)
    answers.put(found)


def measure(work: Path) -> dict[str, Any]:
    """Everything, as a mean over the cores."""
    # What a worker of a scan has in its environment (cluster.session) must be there before torch is loaded.
    os.environ.update(OMP_WAIT_POLICY="passive", OMP_NUM_THREADS="1")
    models = {name: make_model(work / "models" / name, name) for name in MODELS}
    with tempfile.TemporaryDirectory() as scratch:
        s3 = s3_costs(Path(scratch))
    alone, together = (_mean(_copies(count, models)) for count in (1, os.cpu_count() or 1))
    return {"machine": machine(), "versions": versions(), "s3": s3, **_clock_and_cpu(alone, together)}


def _copies(count: int, models: dict[str, str]) -> list[dict[str, Any]]:
    """What so many copies of this process measure side by side."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(count), context.Queue()
    copies = [context.Process(target=measure_copy, args=(models, barrier, answers)) for _ in range(count)]
    for copy in copies:
        copy.start()
    found = [answers.get(timeout=900) for _ in copies]
    for copy in copies:
        copy.join()
    return found


def _clock_and_cpu(alone: Any, together: Any) -> Any:
    """Times on the clock of the one, everything else of the other."""
    if isinstance(alone, dict):
        return {name: alone[name] if name == "ms" else _clock_and_cpu(alone[name], together[name]) for name in alone}
    return together


def _mean(values: list[Any]) -> Any:
    """The mean of equally shaped values, number by number."""
    if isinstance(values[0], dict):
        return {name: _mean([value[name] for value in values]) for name in values[0]}
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/scan"))
    work = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    found = measure(work)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
