"""How fast `verify` hashes a run's files, beside a plain reading of them: MB/s and CPU time, cold and from memory.

    python -m benchmarks.hashing [--work FOLDER] [--mib 2048] [--s3]

Files are put out of the system's cache before each cold reading; the readings take turns, and the best of each counts.
CPU time is this process's: it says what a reading costs where other work slows the clock.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.results.heatmaps import pack
from ad_jobs.results.parts import describe_heatmap_part, describe_parts
from ad_jobs.results.run import RunRecord, machine
from ad_jobs.verifying.files import THREADS, check_heatmap_parts, check_score_parts
from cluster import storage

BLOCK_BYTES = 4 << 20
# Of a file: a part of a scan of small objects, one of a large scan, and a shard of heatmaps.
SIZES = {"small parts": 40 << 10, "large parts": 8 << 20, "shards": 64 << 20, "shards of small maps": 64 << 20}
# Of a heatmap in a shard.
MAPS = {"shards": 64 << 10, "shards of small maps": 8 << 10}
ROUNDS = 5


def make(run: Path, kind: str, total: int) -> None:
    """Files of one kind, so many bytes in all, of what cannot be compressed."""
    rng = np.random.default_rng(0)
    for number in range(max(1, total // SIZES[kind])):
        data = rng.bytes(SIZES[kind])
        if side := MAPS.get(kind):
            path = run / "heatmaps" / f"part-00000-{number:016x}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pack((f"{i:018d}.png", data[i : i + side]) for i in range(0, len(data), side)).data)
        else:
            path = run / "scores" / f"part-00000-{number:016x}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = pa.array([data[i : i + 1024] for i in range(0, len(data), 1024)])
            pq.write_table(pa.table({"x": values}), path, compression="none", use_dictionary=False)


def files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("part-*"))


def cool(run: Path) -> None:
    """Put a run's files out of the system's cache."""
    os.sync()
    for path in files(run):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(BLOCK_BYTES):
            pass


def read_plainly(run: Path) -> None:
    """Every byte once, in as many threads as `verify` has."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, files(run)))


def fetch_plainly(uris: list[str]) -> None:
    """Every byte of every object once, in as many threads as `verify` has, by the client that takes the least CPU."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch, uris))


def fetch(uri: str) -> None:
    filesystem, path = storage.filesystem(uri)
    with filesystem.open_input_stream(path) as file:
        while file.read_buffer(BLOCK_BYTES):
            pass


class Rate(NamedTuple):
    """Of a way of reading: the most MB/s by the clock, and the least CPU-seconds a GB."""

    mb_s: float = 0.0
    cpu_s_gb: float = math.inf

    def or_better(self, other: Rate) -> Rate:
        return Rate(max(self.mb_s, other.mb_s), min(self.cpu_s_gb, other.cpu_s_gb))


def best(ways: dict[str, Callable[[], object]], before: Callable[[], None], size: int) -> dict[str, Rate]:
    """The best of each way over ROUNDS, in turns."""
    found = dict.fromkeys(ways, Rate())
    for _ in range(ROUNDS):
        for name, way in ways.items():
            before()
            start, busy = time.perf_counter(), time.process_time()
            way()
            seconds, cpu_s = time.perf_counter() - start, time.process_time() - busy
            found[name] = found[name].or_better(Rate(size / seconds / 1e6, cpu_s / size * 1e9))
    return found


def hashes(run: str, record: RunRecord) -> None:
    assert not check_score_parts(run, record)
    assert not check_heatmap_parts(run, record)[1]


def main() -> None:
    """Make, measure, and print the rows of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/hashing"))
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--s3", action="store_true", help="on a SeaweedFS of its own, which reads the same disk")
    arguments = parser.parse_args()
    print(f"{machine()['cpu']}, {machine()['cores']} cores, load {os.getloadavg()[0]:.0f}")
    for kind in SIZES:
        run = arguments.work.resolve() / kind.replace(" ", "-")
        shutil.rmtree(run, ignore_errors=True)
        make(run, kind, arguments.mib << 20)
        size = sum(path.stat().st_size for path in files(run))
        shards = [describe_heatmap_part(str(run), f"heatmaps/{p.name}") for p in files(run) if p.suffix == ".tar"]
        record = cast(Any, SimpleNamespace(parts=describe_parts(str(run)), heatmap_parts=shards))
        if arguments.s3:
            from tests.s3server import S3Server

            server = S3Server(arguments.work / "s3")
            os.environ.update(server.env)
            server.start()
            try:
                uri = server.put_folder(run, "run")
                uris = [f"{uri}/{path.relative_to(run)}" for path in files(run)]
                ways: dict[str, Callable[[], object]] = {
                    "read": partial(fetch_plainly, uris),
                    "verify": partial(hashes, uri, record),
                }
                told = {"S3": best(ways, lambda: None, size)}
            finally:
                server.stop()
        else:
            ways = {"read": partial(read_plainly, run), "verify": partial(hashes, str(run), record)}
            told = {"cold": best(ways, partial(cool, run), size), "from memory": best(ways, lambda: None, size)}
        for where, rates in told.items():
            plain, found = rates["read"], rates["verify"]
            row = (
                f"| {kind} | {where} | {len(files(run)):,} | {plain.mb_s:.0f} | {found.mb_s:.0f} | "
                f"{found.mb_s / plain.mb_s:.0%} | {plain.cpu_s_gb:.2f} | {found.cpu_s_gb:.2f} |"
            )
            print(row, flush=True)
        shutil.rmtree(run)


if __name__ == "__main__":
    main()
