"""What a killed scan of ten million objects reads, and holds, before it goes on where it was.

    PYTHONPATH=tests python -m benchmarks.resume [--objects 10000000] [--work FOLDER]

A manifest of so many objects, all chapters but the last committed, and 99 % of the last one in parts, as a
killed scan leaves it.
Then `scan` is called again and stopped where Ray would start.
Beside it the same for a run of one chapter: what grows, grows with what is done.
Writes benchmarks/results/resume.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs import scan as scan_verb
from ad_jobs.archive import listing
from ad_jobs.archive.sources import Listing, SourceObject
from ad_jobs.results.count import Counts
from ad_jobs.results.parts import ScorePart, part_name
from ad_jobs.results.run import machine
from ad_jobs.scanning import chapters, run_state
from ad_jobs.scanning.intent import resolve
from ad_jobs.schema import SCORES
from ad_jobs.specs import CHAPTER_OBJECTS, ScanSpec
from cluster import storage

RESULTS = Path(__file__).parent / "results" / "resume.md"
# Objects.
PART = 20_000


def uri_of(number: int) -> str:
    return f"file:///archive/study-{number // 200:06d}/image-{number:09d}.dcm"


def write_manifest(folder: Path, objects: int) -> None:
    def listed(source: str) -> Listing:
        del source
        now = datetime(2026, 1, 1, tzinfo=UTC)
        found = (SourceObject(uri_of(n), 524_288, f"{n:032x}", now, None) for n in range(objects))
        return Listing("/archive", found, Counter())

    (folder / "archive").mkdir()
    with patch.object(listing, "open_source", listed):
        listing.write_manifest(str(folder / "archive"), str(folder / "manifest"))


def begin(folder: Path, model: str) -> tuple[int, int]:
    """A run as a killed scan leaves it; how many chapters it has, and how many objects are left."""
    intent = resolve(ScanSpec(source=str(folder / "manifest"), model=[model], out=str(folder / "run")))
    run_state.begin(intent)
    for number in range(intent.chapters - 1):
        names = [f"scores/{part_name(number, [str(part)])}.parquet" for part in range(CHAPTER_OBJECTS // PART)]
        chapter = chapters.Chapter(
            number=number,
            counts=Counts(
                objects=CHAPTER_OBJECTS,
                scored=CHAPTER_OBJECTS,
                failed=0,
                skipped=0,
                rows=CHAPTER_OBJECTS,
                flagged=0,
                heatmaps=0,
                by_code={},
            ),
            parts=[ScorePart(name=name, rows=PART, sha256="0" * 64, bytes=1_000_000) for name in names],
            heatmap_parts=[],
        )
        storage.write_bytes(chapters.record_uri(intent.checkpoint, number), chapter.model_dump_json().encode())
    ids = intent.ids(intent.chapters - 1)
    done = ids[: round(0.99 * len(ids))]
    (folder / "run" / "scores").mkdir(exist_ok=True)
    for first in range(0, len(done), PART):
        held = done[first : first + PART]
        values: dict[str, Any] = {
            "object_id": held,
            "uri": [uri_of(int(n)) for n in held],
            "status": ["scored"] * len(held),
            "frame": np.zeros(len(held), np.int32),
            "score": np.zeros(len(held), np.float32),
        }
        columns = [pa.array(values.get(f.name, [None] * len(held)), f.type) for f in SCORES]
        name = f"{part_name(intent.chapters - 1, map(str, held))}.parquet"
        pq.write_table(pa.table(columns, schema=SCORES), folder / "run" / "scores" / name, compression="zstd")
    return intent.chapters, len(ids) - len(done)


class Stop(Exception):
    """Ray would start now."""


def peak_mib() -> float:
    """The largest resident set of this process; `ru_maxrss` would begin with that of the process it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def measure(folder: Path, model: str) -> dict[str, float]:
    """Call the scan again, up to where Ray starts: seconds, peak MiB before and after, and objects left."""
    found: dict[str, float] = {}

    @contextmanager
    def at_work(*_: object) -> Iterator[Callable[..., NoReturn]]:
        def work(left: pa.Table, chapter: int) -> NoReturn:
            del chapter
            found["left"] = left.num_rows
            raise Stop

        yield work

    before = peak_mib()
    start = time.perf_counter()
    try:
        with patch.object(scan_verb, "at_work", at_work):
            scan_verb.scan(str(folder / "manifest"), [model], str(folder / "run"))
    except Stop:
        pass
    else:
        raise SystemExit("the scan found nothing left to do")
    found["seconds"] = time.perf_counter() - start
    found["before_mib"], found["mib"] = before, peak_mib()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=10_000_000)
    parser.add_argument("--work", type=Path, default=Path("build/resume"))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(Path(given.measure[0]), given.measure[1])))
        return
    import scankit as kit

    given.work.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        model = kit.make_model(Path(name) / "model")
        for objects in (CHAPTER_OBJECTS, given.objects):
            folder = (Path(name) / str(objects)).resolve()
            folder.mkdir()
            start = time.perf_counter()
            write_manifest(folder, objects)
            print(f"index of {objects:,} objects: {time.perf_counter() - start:.0f} s", flush=True)
            count, left = begin(folder, model)
            command = [sys.executable, "-m", "benchmarks.resume", "--measure", str(folder), model]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(answer.splitlines()[-1])
            assert found["left"] == left
            size = sum(path.stat().st_size for path in (folder / "manifest").iterdir()) / 1e6
            rows.append(
                (
                    f"{objects:,}",
                    f"{size:.0f}",
                    count,
                    f"{left:,}",
                    f"{found['seconds']:.1f}",
                    f"{found['before_mib']:.0f}",
                    f"{found['mib']:.0f}",
                )
            )
    head = ("objects", "manifest MB", "chapters", "objects left", "seconds until Ray starts", "MiB before", "peak MiB")
    lines = [
        "# Going on with a killed scan",
        "",
        f"On {machine()['cpu']}: all chapters but the last are committed, 99 % of the last is done.",
        "",
        *(f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows)),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
