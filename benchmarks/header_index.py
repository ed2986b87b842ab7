"""How fast `index --headers` reads the headers of CT slices, and how many bytes it asks for, local and in S3.

    PYTHONPATH=tests python -m benchmarks.header_index [--local 4000] [--s3 500]

Slices have 512 x 512 pixels of 16 bits, half a megabyte; local ones are hard links to a few files.
S3 is a SeaweedFS server on the same machine.
Writes benchmarks/results/header_index.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import dicomkit as kit
import numpy as np
from s3server import S3Server

from ad_jobs.archive import headers
from ad_jobs.archive.fetching import Fetcher
from ad_jobs.index import index
from ad_jobs.results.run import machine
from cluster import storage

RESULTS = Path(__file__).parent / "results"
SIDE_PX = 512
DIFFERENT = 16


class Cell(NamedTuple):
    """An index of so many objects: seconds, CPU-seconds of this process, requests, and bytes that came."""

    where: str
    objects: int
    seconds: float
    cpu_s: float
    requests: int
    bytes: int


def slice_of(number: int) -> bytes:
    """A CT slice with the attributes that a manifest has columns for."""
    pixels = np.random.default_rng(number).integers(0, 4096, (SIDE_PX, SIDE_PX), dtype=np.uint16)
    told = {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "PixelSpacing": [0.5, 0.5], "SliceThickness": 1.25}
    placed = {"ImagePositionPatient": [0, 0, number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    return kit.dicom(pixels, bits=12, InstanceNumber=number, SOPInstanceUID=f"1.2.3.{number}", **told, **placed)


def measured(where: str, source: str, out: str) -> Cell:
    """One index of `source` into the new folder `out`."""
    lock, asked, came = threading.Lock(), 0, 0

    def counted(uri: str, offset: int, length: int) -> bytes:
        nonlocal asked, came
        data = storage.fetch_range(uri, offset, length)
        with lock:
            asked, came = asked + 1, came + len(data)
        return data

    before = headers._FETCHER
    headers._FETCHER = Fetcher(fetch_range=counted)
    try:
        start, cpu = time.perf_counter(), time.process_time()
        info = index(source=source, out=out, headers=True)
        spent = time.perf_counter() - start, time.process_time() - cpu
    finally:
        headers._FETCHER = before
    return Cell(where, info.objects, *spent, asked, came)


def local_cell(folder: Path, objects: int) -> Cell:
    """The index of a local folder."""
    archive = folder / "archive"
    archive.mkdir()
    for number in range(DIFFERENT):
        (folder / str(number)).write_bytes(slice_of(number))
    for number in range(objects):
        (archive / f"{number:06}.dcm").hardlink_to(folder / str(number % DIFFERENT))
    return measured("local", str(archive), str(folder / "manifest"))


def s3_cell(folder: Path, objects: int) -> Cell:
    """The index of a prefix in S3."""
    server = S3Server(folder / "s3")
    os.environ.update(server.env)
    server.start()
    try:
        contents = [slice_of(number) for number in range(DIFFERENT)]
        for number in range(objects):
            server.put(f"archive/{number:06}.dcm", contents[number % DIFFERENT])
        return measured("S3", server.uri("archive"), str(folder / "manifest-s3"))
    finally:
        server.stop()


def page(cells: list[Cell], load: float) -> str:
    """The results as Markdown."""
    rows = "\n".join(
        f"| {c.where} | {c.objects:,} | {c.objects / c.seconds:,.0f} | {1e3 * c.cpu_s / c.objects:.2f} "
        f"| {c.requests / c.objects:.2f} | {c.bytes / c.objects / 1024:.1f} |"
        for c in cells
    )
    about = machine()
    return f"""# The header index

`python -m benchmarks.header_index` on {about["cpu"]}, {about["cores"]} cores, with a load of {load:.0f} by others;
CT slices of {SIDE_PX} x {SIDE_PX} pixels of 16 bits, {len(slice_of(0)) // 1024} KiB each.
One process with {headers.HEADER_THREADS} requests at a time.
Where others take the cores, objects/s is what they leave: CPU ms an object is what a header costs.

| archive | objects | objects/s | CPU ms an object | requests an object | KiB read of an object |
|---|---:|---:|---:|---:|---:|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", type=int, default=4000)
    parser.add_argument("--s3", type=int, default=500)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="rs-hi-") as work:
        cells = [local_cell(Path(work), options.local), s3_cell(Path(work), options.s3)]
    found = page(cells, load)
    (RESULTS / "header_index.md").write_text(found)
    print(found)


if __name__ == "__main__":
    main()
