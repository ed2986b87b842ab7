"""What the other verbs cost at many objects: index, plan, show, and decide at the level of images and of studies.

    python -m benchmarks.at_scale [--rows 1000000 10000000] [--work FOLDER] [--only WHAT ...]

The run is that of `benchmarks.after_scan`, and once more with its rows in studies of STUDY frames.
No archive of that size is there: `index` has a made listing in no order, sorted as one of S3 is, and a manifest as its
source; `plan` is given a picture wherever it opens an object.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.archive.manifest_record import RECORD
from ad_jobs.results.parts import describe_parts
from ad_jobs.results.run import RUN_FILE, machine, read_record, versions, write_record
from ad_jobs.schema import SCORES
from benchmarks.after_scan import make, uris_of
from benchmarks.made import write_manifest
from benchmarks.measuring import Cost, cost_of

PART_ROWS = 2000
# Frames of a study.
STUDY = 5

INDEX = """
import sys
from datetime import UTC, datetime
from operator import attrgetter
from ad_jobs.index import index
from cluster import storage
from cluster.storage.listing import sort_bounded
count, moment = int(sys.argv[1]), datetime(2026, 1, 1, tzinfo=UTC)
def listed(root, left_out):
    numbers = (i * 7919 % count for i in range(count))
    found = (storage.ObjectInfo(f"{root}/{i // 1000:06d}/IM{i:09d}.png", 4096, str(i), moment) for i in numbers)
    return sort_bounded(found, key=attrgetter("uri"))
storage.list_objects = listed
print(index(sys.argv[2], sys.argv[3]).objects)
"""
PLAN = """
import re, sys
from ad_jobs.plan import plan
from cluster.storage import local
opened = local._open_regular
def stood_in(uri, within=None):
    number = re.search(r"/archive/.*IM(\\d{9})\\.png$", uri)
    return opened(uri, within) if number is None else opened(f"{sys.argv[3]}/{int(number[1]) % 64:03d}.png")
local._open_regular = stood_in
print(plan("manifest:" + sys.argv[1], [sys.argv[2]])["manifest"])
"""


def studied(folder: Path) -> Path:
    """The run again, its rows of studies of STUDY frames; made once."""
    run, out = folder / "run", folder / "studied"
    if (out / RUN_FILE).exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    (out / "scores").mkdir(parents=True)
    shutil.copytree(run / "calibrations", out / "calibrations")
    record, number = read_record(str(run)), SCORES.get_field_index("study_uid")
    for part in record.parts:
        table = pq.read_table(run / part.name)
        named = pa.array([f"1.2.840.99999.{i // STUDY}" for i in table["object_id"].to_pylist()])
        pq.write_table(table.set_column(number, SCORES.field(number), named), out / part.name, compression="zstd")
    write_record(str(out), record.model_copy(update={"parts": describe_parts(str(out))}))
    return out


def with_headers(folder: Path, rows: int) -> Path:
    """A manifest of the same objects that tells of their headers, of fifty kinds; made once."""
    out = folder / "manifest-headers"
    if not (out / RECORD).exists():
        shutil.rmtree(out, ignore_errors=True)

        def columns(ids: NDArray[np.int64]) -> dict[str, pa.Array]:
            side, ones = pa.array(64 + ids % 50, pa.int32()), np.ones(len(ids))
            return {
                "uri": uris_of(folder, ids),
                "etag": pa.array(ids).cast(pa.string()),
                "kind": pa.array(["png"] * len(ids)),
                "rows": side,
                "columns": side,
                "frames": pa.array(ones, pa.int32()),
                "bits": pa.array(8 * ones, pa.int16()),
            }

        write_manifest(str(folder / "archive"), out, rows, columns, headers=True)
    return out


def index(rows: int, source: str, folder: Path) -> Cost:
    """Of the made listing, or of a manifest."""
    out = folder / "indexed"
    shutil.rmtree(out, ignore_errors=True)
    try:
        return cost_of([sys.executable, "-c", INDEX, str(rows), source, str(out)])
    finally:
        shutil.rmtree(out, ignore_errors=True)


def plan(manifest: Path, work: Path) -> Cost:
    return cost_of([sys.executable, "-c", PLAN, str(manifest), str(work / "model"), str(work / "pictures")])


def decide(run: Path, level: str) -> Cost:
    shutil.rmtree(run / "decisions", ignore_errors=True)
    return cost_of([sys.executable, "-m", "ad_jobs", "decide", str(run), "--top", "1000", "--level", level])


def ways(work: Path, rows: int) -> dict[str, Callable[[], Cost]]:
    """What is measured, on a run of so many rows."""
    folder = make(work, rows, PART_ROWS)
    run, manifest = folder / "run", folder / "manifest"
    return {
        "index of a listing": lambda: index(rows, "/archive", folder),
        "index of a manifest": lambda: index(rows, f"manifest:{manifest}", folder),
        "plan": lambda: plan(manifest, work),
        "plan with headers": lambda: plan(with_headers(folder, rows), work),
        "show": lambda: cost_of([sys.executable, "-m", "ad_jobs", "show", str(run)]),
        "decide": lambda: decide(run, "image"),
        "decide --level study, of 1000": lambda: decide(run, "study"),
        f"decide --level study, of {STUDY}": lambda: decide(studied(folder), "study"),
    }


def main() -> None:
    """Make and measure, and print the rows of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--work", type=Path, default=Path("build/after_scan"))
    parser.add_argument("--only", nargs="+", help="of what is measured")
    arguments = parser.parse_args()
    print(f"{machine()['cpu']}, {machine()['cores']} cores; {versions()}")
    for rows in arguments.rows:
        measured = ways(arguments.work.resolve(), rows)
        for what in arguments.only or measured:
            cost = measured[what]()
            print(f"| {rows:,} | {what} | {cost.seconds:.0f} | {cost.peaks.total} |", flush=True)


if __name__ == "__main__":
    main()
