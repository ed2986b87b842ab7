"""What it costs to go from one run to the next, by rows of each: compare, --since, and reading both as one.

    python -m benchmarks.between_runs [--rows 1000000 2000000] [--work FOLDER]

Two runs of one archive are made without a scan: in the second, of every hundred objects one is new, one is gone, one
has another etag and content, and one another score.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.archive.manifest import read_parts
from ad_jobs.results.count import count_table
from ad_jobs.results.parts import chapter_prefix, describe_parts, part_uris
from ad_jobs.results.run import ManifestRef, ModelRef, RunRecord, machine, versions, write_record
from ad_jobs.schema import SCORED, SCORES, is_flagged
from benchmarks.made import MOMENT, Columns, numbered, write_manifest
from benchmarks.measuring import Cost, cost_of

PART_ROWS = 10_000
MODEL, THRESHOLD = "0123456789ab", 0.9


def objects(folder: Path, rows: int, day: int) -> tuple[int, Columns]:
    """The archive of a day: how many objects, and their columns, in the order of URIs."""
    # The hundredth of a hundred is there on one day alone.
    numbers = np.arange(rows + rows // 100)
    numbers = numbers[numbers % 101 != (100 if day == 1 else 50)]

    def columns(ids: NDArray[np.int64]) -> dict[str, pa.Array]:
        held = numbers[ids]
        days = pa.array(np.where(held % 101 == 7, day, 1)).cast(pa.string())
        names = numbered("IM", held, 9, ".dcm")
        return {
            "uri": pc.binary_join_element_wise(numbered(f"{folder}/archive/", held // 1000, 6, ""), names, "/"),
            "etag": pc.binary_join_element_wise(pa.array(held).cast(pa.string()), days, "-"),
        }

    return len(numbers), columns


def make(folder: Path, rows: int, day: int) -> None:
    """A manifest and the finished run of it."""
    run, manifest, run_id = folder / f"run-{day}", folder / f"manifest-{day}", f"{day:012x}"
    (run / "scores").mkdir(parents=True)
    info = write_manifest(str(folder / "archive"), manifest, *objects(folder, rows, day))
    number = 0
    for table in read_parts(info, ["object_id", "uri", "etag"]):
        for start in range(0, table.num_rows, PART_ROWS):
            number += 1
            part = scored(table.slice(start, PART_ROWS), run_id, day)
            pq.write_table(part, run / "scores" / f"{chapter_prefix(0)}{number:016x}.parquet", compression="zstd")
    counted = count_table(part_uris(str(run)), objects=info.objects, run_id=run_id, model_ids=[MODEL])
    assert not counted.complaints
    model = ModelRef(
        model_id=MODEL,
        uri="/model",
        kind="linear",
        threshold=THRESHOLD,
        calibration_sha256="00",
        weights_sha256="00",
        policy={},
        heatmap_low=0.0,
        heatmap_high=1.0,
    )
    record = RunRecord(
        run_id=run_id,
        started_at=MOMENT + timedelta(days=day),
        ended_at=MOMENT + timedelta(days=day, hours=1),
        source=info.source,
        manifest=ManifestRef(
            uri=info.uri,
            digest=info.digest,
            objects=info.objects,
            listed=info.objects,
            undecided=0,
            fingerprint=info.fingerprint,
        ),
        models=[model],
        config={},
        versions=versions(),
        machine=machine(),
        counts=counted.counts,
        parts=describe_parts(str(run)),
        heatmap_parts=[],
    )
    write_record(str(run), record)


def scored(listed: pa.Table, run_id: str, day: int) -> pa.Table:
    """Rows of the objects: a score and a digest that follow from the object, and every hundredth from the day."""
    # By the number in the name, as the ids of a day are its own.
    numbers = pc.utf8_slice_codeunits(listed["uri"], -13, -4).cast(pa.int64()).to_numpy()
    score = (((numbers * 2654435761) % (1 << 32)) / (1 << 32)).astype(np.float32)
    score = np.where(numbers % 101 == 3, score * np.float32(1 + 0.01 * day), score).astype(np.float32)
    count = len(numbers)
    known = {
        "object_id": listed["object_id"],
        "uri": listed["uri"],
        "frame": np.zeros(count, np.int32),
        "status": [SCORED] * count,
        "score": score,
        "threshold": np.full(count, THRESHOLD, np.float32),
        "flagged": is_flagged(score, THRESHOLD),
        "model_id": [MODEL] * count,
        "run_id": [run_id] * count,
        "content_sha256": pc.utf8_lpad(listed["etag"], 64, "0"),
        "bytes": np.full(count, 4096),
        "scored_at": [MOMENT + timedelta(days=day)] * count,
    }
    columns = [
        pa.array(known[field.name], field.type)
        if field.name in known and not isinstance(known[field.name], pa.ChunkedArray)
        else known.get(field.name, pa.nulls(count, field.type))
        for field in SCORES
    ]
    return pa.table(columns, SCORES)


SINCE = """
import sys
from ad_jobs.archive.manifest_record import manifest_info
from ad_jobs.results.lineage import lineage
from ad_jobs.scanning.since import Had, manifest_of, select_since
runs = [Had(run, manifest_of(run.uri, run.record)) for run in lineage(sys.argv[1])]
found = select_since(manifest_info(sys.argv[2]), None, runs, [sys.argv[3]], None, [])
print(len(found.ids), found.already)
"""
AS_ONE = """
import sys
from retroscan import open_runs
print(sum(batch.num_rows for batch in open_runs(sys.argv[1:]).batches(["uri", "score"])))
"""


def measured(folder: Path, python: str) -> dict[str, Cost]:
    """What each costs on the two runs in a folder, by the Python of one environment."""
    runs = [str(folder / f"run-{day}") for day in (1, 2)]
    return {
        "scan --since, its selection": cost_of([python, "-c", SINCE, runs[0], str(folder / "manifest-2"), MODEL]),
        "open_runs, both as one": cost_of([python, "-c", AS_ONE, *runs]),
        "compare": cost_of([python, "-m", "ad_jobs", "compare", *runs, "--out", str(folder / "compared")]),
    }


def main() -> None:
    """Make and measure, and print the rows of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 2_000_000])
    parser.add_argument("--work", type=Path, default=Path("build/between_runs"))
    arguments = parser.parse_args()
    print(f"{machine()['cpu']}, {machine()['cores']} cores; {versions()}")
    for rows in arguments.rows:
        folder = arguments.work.resolve() / f"rows-{rows}"
        if not (folder / "run-2" / "run.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            for day in (1, 2):
                make(folder, rows, day)
        for what, cost in measured(folder, sys.executable).items():
            print(f"| {rows:,} | {what} | {cost.seconds:.0f} | {cost.peaks.driver} |", flush=True)
            print(cost.output, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
