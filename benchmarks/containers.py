"""What containers cost: listed, and fetched member by member, in blocks as the tasks of a scan do, in one process.

    python -m benchmarks.containers [--objects 400] [--members 200000]

The objects are DICOM slices of 512 x 512, in a folder and in each kind of container.
For a compressed TAR there is what it would cost to unpack it in every task, too.
Prints the tables and writes them to benchmarks/results/containers.md.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ad_jobs.archive import containers_gzip, objects
from ad_jobs.archive.fetching import Source, fetch_all
from ad_jobs.archive.sources import open_source, read_source
from ad_jobs.images.policy import Limits
from ad_jobs.results.run import machine

RESULTS = Path(__file__).parent / "results" / "containers.md"
# Objects of one fetch-and-decode task.
BLOCK = 32
FORMS = {"folder": "", "ZIP": "x.zip", "TAR": "x.tar", "TAR in gzip": "x.tar.gz"}


def slices(count: int) -> Iterator[tuple[str, bytes]]:
    """Objects of 512 KiB that compress to about half, as slices do."""
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = rng.integers(0, 256, 512 * 512, dtype=np.uint8)
        yield f"series/IM{number:06}", (1000 + noise.astype("<u2")).tobytes()


def write(folder: Path, form: str, count: int) -> None:
    """The objects, in a folder or a container there."""
    name = FORMS[form]
    (folder / "series").mkdir(parents=True)
    if form == "ZIP":
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for member, data in slices(count):
                archive.writestr(member, data)
    elif form == "folder":
        for member, data in slices(count):
            (folder / member).write_bytes(data)
    else:
        with open_tar(folder / name) as tar:
            for member, data in slices(count):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def open_tar(path: Path) -> tarfile.TarFile:
    """A new TAR, compressed where its name says so."""
    if path.suffix == ".gz":
        return tarfile.open(path, "w:gz", compresslevel=1)
    return tarfile.open(path, "w")


def costs(folder: Path, *, forget: bool = False) -> tuple[float, float]:
    """Seconds to list the folder, and to fetch all, block after block; with `forget` each task is a new process'."""
    start = time.perf_counter()
    found = [Source(i, o.uri, o.bytes, o.etag, o.within) for i, o in enumerate(read_source(str(folder)))]
    listed = time.perf_counter()
    for first in range(0, len(found), BLOCK):
        if forget:
            objects._UNPACKED = containers_gzip.Kept(containers_gzip.UnpackedTar)
        for one in fetch_all(found[first : first + BLOCK], Limits().max_bytes):
            assert one.error is None
    return listed - start, time.perf_counter() - listed


def list_only(folder: str) -> None:
    """Take every object of a folder once, and print how many, the seconds and this process' peak in MiB."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(1 for _ in open_source(folder).objects)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"| {count:,} | {time.perf_counter() - start:.1f} | {more >> 10} |")


def many(folder: Path, count: int) -> str:
    """A row of a ZIP of tiny members, listed by a process of its own."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        for number in range(count):
            archive.writestr(f"series/IM{number:09}", b"x")
    command = [sys.executable, "-m", "benchmarks.containers", "--list", str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=400)
    parser.add_argument("--members", type=int, default=200_000)
    parser.add_argument("--list", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list:
        list_only(given.list)
        return
    lines = [
        "# What containers cost",
        "",
        f"`python -m benchmarks.containers` on {machine()['cpu']}: objects of 512 KiB, fetched in blocks of {BLOCK} by "
        f"one process, from a local disk, under a load of {os.getloadavg()[0]:.0f}: compare rows, not seconds.",
        "",
        "| | objects | listed in s | fetched in s | ms an object |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for count in (given.objects, 4 * given.objects):
            for form in FORMS:
                folder = Path(scratch) / f"{form} {count}"
                write(folder, form, count)
                ways = {form: False, **({f"{form}, unpacked by every task": True} if form == "TAR in gzip" else {})}
                for name, forget in ways.items():
                    listed, fetched = costs(folder, forget=forget)
                    lines.append(f"| {name} | {count:,} | {listed:.2f} | {fetched:.2f} | {1e3 * fetched / count:.2f} |")
        lines += ["", "A ZIP of tiny members, listed:", "", "| members | s | MiB more |", "| ---: | ---: | ---: |"]
        lines += [many(Path(scratch) / f"many {count}", count) for count in (given.members // 4, given.members)]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
