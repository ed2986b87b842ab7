"""What a reviewer waits for, by rows of the run: the start, pages, filters, pictures one after the other, verdicts.

    python -m benchmarks.review [--rows 100000 1000000] [--work FOLDER]

A run is made with rows of different content, in studies of forty frames; the highest-scored VIEWED of them have a
picture of 512 x 512 px with 16 bits, and a heatmap.
`retroscan review` is started as a user starts it, and asked over HTTP what its page asks.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ad_jobs.images.geometry import Geometry
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.results.count import count_table
from ad_jobs.results.heatmaps import encode_png, member_name, pack
from ad_jobs.results.parts import describe_heatmap_part, describe_parts, part_uris
from ad_jobs.results.run import ManifestRef, ModelRef, RunRecord, machine, versions, write_record
from ad_jobs.schema import SCORES
from benchmarks.made import numbered

RESULT = Path(__file__).parent / "results" / "review.md"
VIEWED = 200
SIDE_PX = 512
PART_ROWS = 2000
FRAMES = 40
MODEL = "0123456789ab"
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = PixelPolicy(channels=1, height_px=128, width_px=128)
FILTERS = {
    "flagged": {"flagged": "yes"},
    "modality": {"modality": "CT"},
    "month and manufacturer": {"month": "2024-03", "manufacturer": "Maker 2"},
    "score between": {"score_min": "0.2", "score_max": "0.201"},
    "none of mine": {"verdict": "open"},
    "accepted": {"verdict": "accepted"},
    "failed": {"reason": "corrupt"},
}


def pictures(folder: Path) -> tuple[list[tuple[str, str]], list[bytes]]:
    """VIEWED pictures, each by its place and digest, and their heatmaps."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX] / SIDE_PX
    geometry = Geometry.of(POLICY, SIDE_PX, SIDE_PX)
    found, heatmaps = [], []
    for number in range(VIEWED):
        values = 0.5 + 0.3 * np.sin(9 * x + number) * np.cos(7 * y) + rng.normal(0, 0.02, x.shape)
        body = io.BytesIO()
        Image.fromarray((values.clip(0, 1) * 65535).astype(np.uint16)).save(body, "PNG")
        path = folder / f"{number:04d}.png"
        path.write_bytes(body.getvalue())
        found.append((str(path), hashlib.sha256(body.getvalue()).hexdigest()))
        heatmaps.append(encode_png(rng.uniform(0, 1, (128, 128)).astype(np.float32), geometry))
    return found, heatmaps


def make(work: Path, rows: int) -> Path:
    """The folder of a finished run of so many rows; made once."""
    folder = work / f"review-{rows}"
    run = folder / "run"
    if (run / "run.json").exists():
        return run
    shutil.rmtree(folder, ignore_errors=True)
    (run / "scores").mkdir(parents=True)
    (run / "heatmaps").mkdir()
    viewed, heatmaps = pictures(folder / "pictures")
    # Spread over the run.
    places = {int(place): number for number, place in enumerate(np.linspace(0, rows - 1, VIEWED).astype(int))}
    shard = pack([(member_name(place, 0), heatmaps[number]) for place, number in places.items()])
    (run / shard.name).write_bytes(shard.data)
    rng = np.random.default_rng(1)
    for start in range(0, rows, PART_ROWS):
        ids = np.arange(start, min(rows, start + PART_ROWS))
        own = {int(place): places[int(place)] for place in ids if int(place) in places}
        pq.write_table(
            _part(ids, rng, own, viewed, shard), run / "scores" / f"part-{start:09d}.parquet", compression="zstd"
        )
    counted = count_table(part_uris(str(run)), objects=rows, run_id="made", model_ids=[MODEL])
    assert not counted.complaints, counted.complaints
    part = describe_heatmap_part(str(run), shard.name)
    assert part is not None
    record = RunRecord(
        run_id="made",
        started_at=MOMENT,
        ended_at=MOMENT,
        source=str(folder / "pictures"),
        manifest=ManifestRef(uri=str(folder / "manifest"), digest="00", objects=rows),
        models=[
            ModelRef(
                model_id=MODEL,
                uri="/model",
                kind="made",
                threshold=0.99,
                calibration_sha256="00",
                weights_sha256="00",
                policy=POLICY.model_dump(),
                heatmap_low=0.0,
                heatmap_high=1.0,
            )
        ],
        config={},
        versions=versions(),
        machine=machine(),
        counts=counted.counts,
        parts=describe_parts(str(run)),
        heatmap_parts=[part],
    )
    write_record(str(run), record)
    return run


def _part(
    ids: np.ndarray[Any, Any], rng: np.random.Generator, own: dict[int, int], viewed: Any, shard: Any
) -> pa.Table:
    n = len(ids)
    # One in five hundred failed.
    failed = ids % 500 == 499
    score = rng.uniform(0, 1, n).astype(np.float32)
    uri = numbered("/archive/IM", ids, 9, ".dcm").to_pylist()
    digest = [hashlib.sha256(str(number).encode()).hexdigest() for number in ids]
    heatmap: list[str | None] = [None] * n
    for place, number in own.items():
        at = place - int(ids[0])
        failed[at], score[at] = False, 1 + number / 1000
        (uri[at], digest[at]), heatmap[at] = viewed[number], shard.reference(member_name(place, 0))
    columns: dict[str, Any] = dict.fromkeys(SCORES.names)
    columns |= {
        "object_id": ids,
        "uri": uri,
        "frame": np.zeros(n, np.int32),
        "status": np.where(failed, "failed", "scored"),
        "error_code": pa.array(np.where(failed, "corrupt", ""), mask=~failed),
        "score": pa.array(score, mask=failed),
        "threshold": pa.array(np.full(n, 0.99, np.float32), mask=failed),
        "flagged": pa.array(score > np.float32(0.99), mask=failed),
        "heatmap": heatmap,
        "model_id": [MODEL] * n,
        "run_id": ["made"] * n,
        "content_sha256": digest,
        "study_uid": [f"1.2.826.{number // FRAMES}" for number in ids],
        "series_uid": [f"1.2.826.{number // FRAMES}.1" for number in ids],
        "modality": np.array(["MR", "CT", "CR", "DX"])[ids // FRAMES % 4],
        "manufacturer": [f"Maker {number // FRAMES % 5}" for number in ids],
        "study_month": [f"2024-{number // FRAMES % 12 + 1:02d}" for number in ids],
    }
    return pa.table(
        {
            name: pa.nulls(n, SCORES.field(name).type)
            if values is None
            else pa.array(values).cast(SCORES.field(name).type)
            for name, values in columns.items()
        },
        schema=SCORES,
    )


def timed(client: httpx.Client, path: str, asked: dict[str, Any] | None = None, said: Any = None) -> float:
    """Seconds of one request that is answered; `said` is posted."""
    start = time.perf_counter()
    answer = client.get(path, params=asked) if said is None else client.post(path, json=said)
    answer.raise_for_status()
    return time.perf_counter() - start


def measured(run: Path) -> dict[str, Any]:
    """Seconds of everything, and the server's memory."""
    shutil.rmtree(run / "reviews", ignore_errors=True)
    command = [sys.executable, "-m", "ad_jobs", "review", str(run), "--reviewer", "benchmark", "--json"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        lines = ""
        while not lines.rstrip().endswith("}"):
            lines += server.stdout.readline()
        found: dict[str, Any] = {"start": time.perf_counter() - start}
        address, _, token = json.loads(lines)["address"].partition("/?token=")
        try:
            with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
                found |= _asked(client)
            found["memory_mib"] = psutil.Process(server.pid).memory_info().rss >> 20
        finally:
            server.terminate()
    return found


def _asked(client: httpx.Client) -> dict[str, Any]:
    first = timed(client, "/api/run") + timed(client, "/api/images", {"limit": 100})
    rows = client.get("/api/images", params={"limit": VIEWED}).json()["rows"]
    deep = {"after": rows[-1]["position"], "limit": 100}
    # Of a reviewer who goes through them: what is known of each, its picture and its heatmap.
    nexts, verdicts = [], []
    for row in rows:
        of = f"{row['object_id']}/{row['frame']}"
        nexts.append(sum(timed(client, f"/api/{what}/{of}") for what in ("frame", "picture", "heatmap")))
    for row in rows[:50]:
        said = {"object_id": row["object_id"], "frame": row["frame"], "verdict": "accepted"}
        verdicts.append(timed(client, "/api/verdicts", said=said))
    return {
        "first": first,
        "following": [timed(client, "/api/images", deep) for _ in range(5)],
        "next": nexts,
        "verdict": verdicts,
        "filters": {name: [timed(client, "/api/images", asked) for _ in range(5)] for name, asked in FILTERS.items()},
        "studies": [timed(client, "/api/studies", FILTERS["flagged"]) for _ in range(5)],
    }


def page(found: dict[int, dict[str, Any]]) -> str:
    """The figures as a page."""

    def cell(times: list[float]) -> str:
        return f"{1e3 * statistics.median(times):.0f} ({1e3 * max(times):.0f})"

    rows = [
        ("start: read, sort and index the rows, s", [f"{one['start']:.1f}" for one in found.values()]),
        ("first page with its counts and filters, ms", [f"{1e3 * one['first']:.0f}" for one in found.values()]),
        ("a page further on", [cell(one["following"]) for one in found.values()]),
        *((f"filter: {name}", [cell(one["filters"][name]) for one in found.values()]) for name in FILTERS),
        ("studies with a flagged image", [cell(one["studies"]) for one in found.values()]),
        (f"next image, {VIEWED} in a row: row, picture, heatmap", [cell(one["next"]) for one in found.values()]),
        ("a verdict, until it is on the disk", [cell(one["verdict"]) for one in found.values()]),
        ("memory of the server at the end, MiB", [str(one["memory_mib"]) for one in found.values()]),
    ]
    heads = " | ".join(f"{n:,} rows" for n in found)
    lines = [
        f"| | {heads} |",
        "|---" * (len(found) + 1) + "|",
        *(f"| {what} | {' | '.join(of)} |" for what, of in rows),
    ]
    about = machine()
    return "\n".join(
        [
            "# What a reviewer waits for",
            "",
            "Milliseconds over HTTP, the median and in brackets the most; pages and filters five times, with counts.",
            f"Pictures are PNG of {SIDE_PX} x {SIDE_PX} px with 16 bits, decoded when asked for, none ahead.",
            f"By `python -m benchmarks.review`, on {about['cpu']}, {about['cores']} cores.",
            "",
            *lines,
            "",
        ]
    )


def main() -> None:
    """Measure runs of every size asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--work", type=Path, default=Path("/tmp/retroscan-review"))
    asked = parser.parse_args()
    found = {}
    for rows in asked.rows:
        found[rows] = measured(make(asked.work, rows))
        print(rows, {name: value for name, value in found[rows].items() if name in ("start", "first", "memory_mib")})
    RESULT.write_text(page(found), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
