"""What verbs cost after a scan, by rows of the table: verify, report, evaluate, and reading a few rows.

    python -m benchmarks.after_scan [--rows 1000000 2000000] [--part-rows 64] [--work FOLDER] [--s3] [--only VERB ...]

A run is made of a real one of PICTURES pictures: its manifest has as many objects as there are to be rows, each object
is one of the pictures, and its row is that picture's.
Parts hold as many rows as those of a scan do.
Objects that `verify` samples are put where they are said to lie; no other exists.
With --s3 the run lies in a SeaweedFS of its own; its manifest and its objects stay where they are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ad_jobs.results.count import count_table
from ad_jobs.results.parts import chapter_prefix, describe_parts, part_uris
from ad_jobs.results.run import ManifestRef, RunRecord, machine, read_record, versions, write_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.scanning.intent import resolve
from ad_jobs.schema import SCORES
from ad_jobs.specs import CHAPTER_OBJECTS, ScanSpec
from ad_jobs.verifying.sample import choose
from benchmarks.made import numbered, write_manifest
from benchmarks.measuring import Cost, cost_of

PICTURES = 64
LABELLED = 2000
SAMPLE = 20


def pictures(folder: Path) -> list[Path]:
    """Small pictures, one in eight with a bright spot."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:64, :64] / 63
    found = []
    for number in range(PICTURES):
        values = 0.5 + 0.2 * np.sin(6 * x + rng.uniform(0, 1)) * np.cos(4 * y) + rng.normal(0, 0.02, (64, 64))
        if number % 8 == 0:
            values[20:30, 30:40] += rng.uniform(0.1, 0.4)
        path = folder / f"{number:03d}.png"
        Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8)).save(path)
        found.append(path)
    return found


def template(work: Path) -> tuple[RunRecord, pa.Table]:
    """The record of a scan of the pictures, and its rows in their order."""
    of, run = pictures(work / "pictures"), work / "template"
    if not (run / "run.json").exists():
        normal = work / "normal.csv"
        normal.write_text("image\n" + "".join(f"{path}\n" for number, path in enumerate(of) if number % 8))
        retroscan("fit", "--detector", "linear", "--normal", str(normal), "--out", str(work / "model"))
        retroscan(
            *("scan", str(work / "pictures"), "--model", str(work / "model")),
            *("--out", str(run), "--heatmaps", "none"),
        )
    record = read_record(str(run))
    rows = pa.concat_tables(pq.read_table(run / part.name) for part in record.parts).sort_by("object_id")
    return record, rows


def retroscan(*arguments: str) -> Cost:
    """A verb as a user runs it."""
    return cost_of([sys.executable, "-m", "ad_jobs", *arguments])


def uris_of(folder: Path, numbers: NDArray[np.int64]) -> pa.Array:
    """Where objects are said to lie."""
    names = numbered("IM", numbers, 9, ".png")
    return pc.binary_join_element_wise(numbered(f"{folder}/archive/", numbers // 1000, 6, ""), names, "/")


def make(work: Path, rows: int, part_rows: int) -> Path:
    """The folder of a finished run of so many rows, so many in a part, and of its labels.csv; made once."""
    folder = work / f"rows-{rows}-{part_rows}"
    if (folder / "labels.csv").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    record, given = template(work)
    run, manifest = folder / "run", folder / "manifest"
    (folder / "archive").mkdir(parents=True)
    (run / "scores").mkdir(parents=True)
    shutil.copytree(work / "template" / "calibrations", run / "calibrations")
    info = write_manifest(
        str(folder / "archive"),
        manifest,
        rows,
        lambda ids: {"uri": uris_of(folder, ids), "etag": pa.array(ids).cast(pa.string())},
    )
    config = {**record.config, "source": str(manifest)}
    intent = resolve(ScanSpec(**{**config, "out": str(run)}))
    for start in range(0, rows, part_rows):
        ids = np.arange(start, min(rows, start + part_rows))
        part = given.take(pa.array(ids % PICTURES))
        own = {"object_id": pa.array(ids), "uri": uris_of(folder, ids), "run_id": pa.array([intent.run_id] * len(ids))}
        for column, values in own.items():
            number = SCORES.get_field_index(column)
            part = part.set_column(number, SCORES.field(number), values)
        name = f"{chapter_prefix(start // CHAPTER_OBJECTS)}{start:016x}.parquet"
        pq.write_table(part, run / "scores" / name, compression="zstd")
    counted = count_table(
        part_uris(str(run)), objects=rows, run_id=intent.run_id, model_ids=[model.model_id for model in intent.models]
    )
    assert not counted.complaints
    changed = {
        "run_id": intent.run_id,
        "source": str(manifest),
        "manifest": ManifestRef(uri=str(manifest), digest=info.digest, objects=rows, fingerprint=info.fingerprint),
        "config": config,
        "counts": counted.counts,
        "parts": describe_parts(str(run)),
    }
    write_record(str(run), record.model_copy(update=changed))
    labelled = np.random.default_rng(1).choice(rows, LABELLED, replace=False)
    uris = uris_of(folder, labelled).to_pylist()
    lines = [f"{uri},{int(i % PICTURES % 8 == 0)}" for uri, i in zip(uris, labelled, strict=True)]
    (folder / "labels.csv").write_text("\n".join(["image,anomalous", *lines]) + "\n")
    return folder


def put_sampled(work: Path, folder: Path, rows: int) -> None:
    """The objects that `verify` will draw, where they are said to lie."""
    run = str(folder / "run")
    drawn = choose(ScoreTable(run, read_record(run)), rows, SAMPLE, 0).drop_duplicates("object_id")
    for i, uri in zip(drawn["object_id"], drawn["uri"], strict=True):
        path = Path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(work / "pictures" / f"{i % PICTURES:03d}.png", path)


READ = """
import sys
from retroscan import read_scores
read_scores(sys.argv[1], columns=["uri", "score"], where=sys.argv[2])
"""


def ways(folder: Path, run: str, python: str) -> dict[str, list[str]]:
    """The commands that are measured on the run in a folder, or on a copy of it, by the Python of one environment."""
    return {
        "verify": [python, "-m", "ad_jobs", "verify", run, "--sample", str(SAMPLE)],
        "report": [python, "-m", "ad_jobs", "report", run],
        "evaluate": [python, "-m", "ad_jobs", "evaluate", run, "--labels", str(folder / "labels.csv")],
        "decide": [python, "-m", "ad_jobs", "decide", run, "--top", "1000"],
        "read_scores(where=)": [python, "-c", READ, run, "object_id % 100000 = 0"],
    }


@contextmanager
def on_s3(folder: Path, work: Path) -> Iterator[str]:
    """The run of a folder in a store that lasts as long as the context."""
    from tests.s3server import S3Server

    server = S3Server(work / "s3")
    before = {name: os.environ.get(name) for name in server.env}
    os.environ.update(server.env)
    server.start()
    try:
        yield server.put_folder(folder / "run", folder.name)
    finally:
        server.stop()
        shutil.rmtree(work / "s3")
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def main() -> None:
    """Make and measure, and print the rows of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 2_000_000])
    parser.add_argument("--part-rows", type=int, default=64, help="of a part, as a scan of small objects writes them")
    parser.add_argument("--work", type=Path, default=Path("build/after_scan"))
    parser.add_argument("--s3", action="store_true", help="the run lies in a store")
    parser.add_argument("--only", nargs="+", help="of the verbs")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    print(f"{machine()['cpu']}, {machine()['cores']} cores; {versions()}")
    for rows in arguments.rows:
        folder = make(work, rows, arguments.part_rows)
        put_sampled(work, folder, rows)
        place = on_s3(folder, work) if arguments.s3 else nullcontext(str(folder / "run"))
        with place as run:
            commands = ways(folder, run, sys.executable)
            for verb in arguments.only or commands:
                cost = cost_of(commands[verb])
                told = f"| {rows:,} | {verb} | {cost.seconds:.0f} | {cost.peaks.driver} | {cost.peaks.largest} |"
                print(told, flush=True)


if __name__ == "__main__":
    main()
