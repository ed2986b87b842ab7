"""What `retroscan scan` costs beside the bare detector, a DataLoader loop and a plain script of Ray Data.

    PYTHONPATH=tests python -m benchmarks.scan [--only TEXT] [--work FOLDER]

Every way scores the same images with the same model: `bare` from tensors in memory, `loader` with torch's DataLoader
into a Parquet file, `ray` with Ray Data into Parquet files, `scan` as a user calls it.
Each runs at n and at 10 n images in processes of its own, so that start-up and the marginal cost of an image come
apart: images/s = 9 n / (t(10 n) - t(n)), start-up = t(n) - n / images/s.
CPU-seconds are those of the whole machine, so run it on a quiet one.
A finished cell is not run again.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from ad_jobs.fitting.cost import score_cpu_ms
from ad_jobs.phantom.codecs import JPEG_2000_LOSSLESS, compress
from ad_jobs.results.run import machine, versions
from ad_jobs.scoring.calibration import calibrate_on
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import SCORE_CPU_MS, open_model, write_calibration
from ad_jobs.scoring.scorer import Scorer
from benchmarks.measuring import busy_s, cost_of
from models import artifact, registry
from models.detector import InputSpec

RESULTS = Path(__file__).parent / "results"
# Of the images as stored.
SIDE_PX = 512
# Images; their files repeat.
DIFFERENT = 48
WAYS = ("bare", "loader", "ray", "scan")
FORMATS = ("dicom", "png", "jpeg")
# Untrained: what a score costs does not hang on what the weights hold.
MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    # detector, input px, options
    "light": ("mkd", 64, {}),
    "heavy": ("ssm", 64, {"grid": 0, "cells_across": [32, 16, 8]}),
    "padim": ("padim", 64, {"layers": [2, 3, 4]}),
    "padim-256": ("padim", 256, {"layers": [2, 3, 4]}),
    "pmad": ("pmad", 64, {}),
}
# n, so large that every process of a scan has started before it ends: else their start counts as an image's.
COUNTS = {"light": {"dicom": 520, "png": 2080, "jpeg": 2080}, "heavy": {"dicom": 120, "png": 120}}
BATCH = 32
# What the plain script is measured on.
PLAIN = (("local", "png"), ("local", "jpeg"), ("s3", "dicom"))
# Which archives each model is measured on: what an image costs beside the heavy one hangs little on
# where it comes from.
COMPARED = {
    "light": (*itertools.product(("local",), FORMATS), ("s3", "dicom"), ("s3", "jpeg")),
    "heavy": (("local", "png"), ("s3", "dicom")),
}


# --- What is scored, and with what


def picture(number: int, side_px: int) -> NDArray[np.float64]:
    """A smooth field with grain, [0, 1], that compresses as radiographs do."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.random((12, 12)).astype(np.float32)).resize(
        (side_px, side_px), Image.Resampling.BICUBIC
    )
    grain = 0.01 * rng.standard_normal((side_px, side_px))
    return np.clip(np.asarray(coarse, np.float64) * 0.8 + 0.1 + grain, 0, 1)


def encoded(number: int, form: str, side_px: int = SIDE_PX) -> bytes:
    values = picture(number, side_px)
    if form == "dicom":
        return _dicom(number, np.rint(4095 * values).astype(np.uint16))
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(file, form.upper())
    return file.getvalue()


def _dicom(number: int, stored: NDArray[np.uint16]) -> bytes:
    """An MR image of 12 bits in JPEG 2000."""
    import scankit as kit
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless, MRImageStorage

    data = kit.dataset(number, MRImageStorage)
    data.Modality = "MR"
    kit.describe_grey(data, *stored.shape)
    data.PixelData = encapsulate([compress(stored, JPEG_2000_LOSSLESS)])
    data["PixelData"].is_undefined_length = True
    return kit.written(data, JPEG2000Lossless)


def write_archive(folder: Path, form: str, count: int) -> None:
    suffix = {"dicom": "dcm", "png": "png", "jpeg": "jpg"}[form]
    if (folder / f"{count - 1:06d}.{suffix}").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    files = [encoded(number, form) for number in range(min(DIFFERENT, count))]
    for number in range(count):
        (folder / f"{number:06d}.{suffix}").write_bytes(files[number % len(files)])


def make_model(folder: Path, name: str) -> str:
    kind, size, options = MODELS[name]
    if (folder / "calibration.json").exists():
        return str(folder)
    torch.manual_seed(0)
    detector = registry.create(
        kind, registry.configure(kind, options), InputSpec(channels=3, height_px=size, width_px=size)
    ).eval()
    policy = {"channels": 3, "height_px": size, "width_px": size}
    model_id = artifact.save(folder, kind, detector, policy, {SCORE_CPU_MS: score_cpu_ms(detector)})
    normal = [frame_of(picture(number, SIDE_PX), size) for number in range(40)]
    found = calibrate_on(detector, map(HeldOut, normal), model_id=model_id, max_fpr=0.1, source="benchmark")
    write_calibration(str(folder), found)
    return str(folder)


def frame_of(values: NDArray[np.float64], size: int) -> NDArray[np.uint16]:
    small = Image.fromarray(values.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    return np.rint(65535 * np.clip(np.asarray(small), 0, 1)).astype(np.uint16)[None]


# --- The ways, each in a process of its own


def load(uri: str, size: int) -> NDArray[np.uint16]:
    """An image as a plain script reads it: no checks, no limits, no guard."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        data = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
    else:
        data = Path(uri).read_bytes()
    if uri.endswith(".dcm"):
        import pydicom

        found = pydicom.dcmread(io.BytesIO(data))
        return frame_of(found.pixel_array / float(2**found.BitsStored - 1), size)
    return frame_of(np.asarray(Image.open(io.BytesIO(data)).convert("L")) / 255.0, size)


_clients: list[Any] = []


def _client() -> Any:
    if not _clients:
        _clients.append(boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]))
    return _clients[0]


def uris_of(source: str) -> list[str]:
    if not source.startswith("s3://"):
        return [str(path) for path in sorted(Path(source).iterdir())]
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/")
    return [f"s3://{bucket}/{found['Key']}" for page in pages for found in page["Contents"]]


def bare(source: str, model: str, out: Path) -> None:
    """The detector on frames in memory; what comes before its first batch does not count."""
    opened = open_model(model)
    uris = uris_of(source)
    frames = [load(uri, opened.policy.height_px) for uri in uris[:DIFFERENT]]
    scorer = Scorer(opened.detector, batch_size=BATCH, threads=os.cpu_count())
    for _ in scorer.score(frames[:BATCH]):
        pass
    before, start = busy_s(), time.perf_counter()
    for _ in scorer.score(itertools.islice(itertools.cycle(frames), len(uris))):
        pass
    out.mkdir(parents=True, exist_ok=True)
    (out / "own.json").write_text(json.dumps({"seconds": time.perf_counter() - start, "cpu_s": busy_s() - before}))


class _Images(torch.utils.data.Dataset[tuple[str, NDArray[np.uint16]]]):
    def __init__(self, uris: list[str], size: int) -> None:
        self.uris, self.size = uris, size

    def __len__(self) -> int:
        return len(self.uris)

    def __getitem__(self, place: int) -> tuple[str, NDArray[np.uint16]]:
        return self.uris[place], load(self.uris[place], self.size)


def loader(source: str, model: str, out: Path) -> None:
    """What most people write: a DataLoader, the detector, a Parquet file of scores."""
    opened = open_model(model)
    cores = os.cpu_count() or 1
    scorer = Scorer(opened.detector, batch_size=BATCH, threads=cores)
    images = _Images(uris_of(source), opened.policy.height_px)
    batches = torch.utils.data.DataLoader(images, BATCH, num_workers=max(1, cores - 1), collate_fn=list)
    found: dict[str, list[Any]] = {"uri": [], "score": []}
    for batch in batches:
        found["uri"] += [uri for uri, _ in batch]
        found["score"] += [frame.score for frame in scorer.score([pixels for _, pixels in batch])]
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(found), out / "scores.parquet")


class _Actor:
    def __init__(self, model: str) -> None:
        opened = open_model(model)
        self.scorer = Scorer(opened.detector, batch_size=BATCH, threads=1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"uri": batch["uri"], "score": [frame.score for frame in self.scorer.score(list(batch["pixels"]))]}


def plain_ray(source: str, model: str, out: Path) -> None:
    """A plain script of Ray Data: URIs, a map that reads, an actor that scores, Parquet."""
    import ray

    size = open_model(model).policy.height_px
    ray.init(log_to_driver=False, include_dashboard=False)
    items = ray.data.from_items([{"uri": uri} for uri in uris_of(source)])
    read = items.map(lambda row: {"uri": row["uri"], "pixels": load(row["uri"], size)}, num_cpus=0.5)
    scored = read.map_batches(
        _Actor, fn_constructor_args=(model,), batch_size=BATCH, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=1)
    )
    scored.write_parquet(str(out))
    ray.shutdown()


# --- Measuring


def measure(way: str, source: str, model: str, out: Path) -> dict[str, float]:
    """Seconds, CPU-seconds and MiB of one way over one archive."""
    command = [sys.executable, "-m", "benchmarks.scan", "--way", way, source, model, str(out)]
    if way == "scan":
        command = scan_command(source, [model], out)
    spent = cost_of(command)
    found = {"seconds": spent.seconds, "cpu_s": spent.cpu_s, "peak_mib": float(spent.peaks.total)}
    if (out / "own.json").exists():
        found |= json.loads((out / "own.json").read_text())
    return found


def scan_command(source: str, models: list[str], out: Path) -> list[str]:
    """The scan as a user calls it, without heatmaps: the other ways keep none."""
    given = [word for model in models for word in ("--model", model)]
    return [sys.executable, "-m", "ad_jobs", "scan", source, *given, "--out", str(out), "--heatmaps", "none"]


def cell(way: str, form: str, store: str, name: str, work: Path) -> dict[str, Any]:
    """One way at n and at 10 n images."""
    model = make_model(work / "models" / name, name)
    n = COUNTS[name][form]
    found: dict[str, Any] = {"way": way, "format": form, "store": store, "model": name, "n": n}
    with stored(store, work) as (place, counted):
        for key, count in (("small", n), ("large", 10 * n)):
            folder = work / "archives" / f"{form}-{count}"
            write_archive(folder, form, count)
            source = place(folder)
            counted.clear()
            with tempfile.TemporaryDirectory(dir=work) as out:
                found[key] = measure(way, source, model, Path(out) / "run")
            found[key]["requests_per_object"] = len(counted) / count
        found["bytes_per_object"] = sum(path.stat().st_size for path in folder.iterdir()) / count
    spent = {key: found["large"][key] - found["small"][key] for key in ("seconds", "cpu_s")}
    return found | {
        "images_per_s": 9 * n / spent["seconds"],
        "cpu_ms_per_image": 1e3 * spent["cpu_s"] / (9 * n),
        "start_s": found["small"]["seconds"] - spent["seconds"] / 9,
        "machine": machine(),
        "versions": versions(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }


@contextmanager
def stored(store: str, work: Path) -> Iterator[tuple[Any, list[Any]]]:
    """How a folder becomes a source, and the list of requests that a counting proxy has seen."""
    if store == "local":
        yield str, []
        return
    from s3server import S3Server

    from tests.faults.proxy import FaultProxy

    server = S3Server(work / "s3")
    os.environ.update(server.env)
    server.start()
    proxy = FaultProxy(server.endpoint)
    os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
    try:
        yield lambda folder: server.put_folder(folder, folder.name), proxy.requests
    finally:
        proxy.close()
        server.stop()


def write_table() -> None:
    cells = [json.loads(path.read_text()) for path in sorted((RESULTS / "scan").glob("*.json"))]
    if not cells:
        return
    head = (
        "model",
        "store",
        "format",
        "way",
        "n",
        "images/s",
        "CPU ms an image",
        "start s",
        "peak MiB",
        "requests",
        "KiB an object",
    )
    rows = [
        (
            one["model"],
            one["store"],
            one["format"],
            one["way"],
            str(one["n"]),
            f"{one['images_per_s']:.1f}",
            f"{one['cpu_ms_per_image']:.1f}",
            f"{one['start_s']:.1f}" if one["way"] != "bare" else "–",
            f"{one['large']['peak_mib']:.0f}",
            f"{one['large']['requests_per_object']:.2f}" if one["store"] == "s3" else "–",
            f"{one['bytes_per_object'] / 1024:.0f}",
        )
        for one in sorted(cells, key=lambda one: (one["model"], one["store"], one["format"], WAYS.index(one["way"])))
    ]
    about = sorted({f"{one['machine']['cpu']}, torch {one['versions']['torch']}" for one in cells})
    lines = [
        "# What a scan costs",
        "",
        f"`python -m benchmarks.scan` on {'; '.join(about)}, {os.cpu_count()} cores: {SIDE_PX} x {SIDE_PX} images, "
        + "; ".join(
            f"{name}: {kind} at {size} px" for name, (kind, size, _) in ((name, MODELS[name]) for name in COMPARED)
        )
        + ". Images per second and CPU are marginal, from n to 10 n; the bare detector reads and writes nothing.",
        "",
        *(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)),
    ]
    (RESULTS / "scan.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only cells whose name contains this text")
    parser.add_argument("--work", type=Path, default=Path("build/scan"))
    parser.add_argument("--way", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        way, source, model, out = given.way
        # By its name: Ray pickles what is in __main__ by value, clients and all.
        from benchmarks import scan as itself

        {"bare": itself.bare, "loader": itself.loader, "ray": itself.plain_ray}[way](source, model, Path(out))
        return
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    folder = RESULTS / "scan"
    folder.mkdir(exist_ok=True)
    planned = (
        (name, store, form, way)
        for name, archives in COMPARED.items()
        for store, form in archives
        for way in WAYS
        # It reads none of them.
        if way != "bare" or (store, form) == ("local", "png")
        if way != "ray" or (store, form) in PLAIN
    )
    for name, store, form, way in planned:
        path = folder / f"{name}-{store}-{form}-{way}.json"
        if path.exists() or given.only not in path.name:
            continue
        found = cell(way, form, store, name, work)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(path.name, f"{found['images_per_s']:.1f} images/s", flush=True)
        write_table()
    write_table()


if __name__ == "__main__":
    main()
