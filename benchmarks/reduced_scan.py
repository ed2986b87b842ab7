"""What a whole scan gains by `decode: reduced`: images a second, and the CPU of all of its processes.

    python -m benchmarks.reduced_scan

A light detector scans archives of lossless JPEG 2000, 12 bits, decoded whole and reduced, each scan in a process of
its own with two CPUs; a scan of few images tells what any costs. What is measured is stored in
benchmarks/results/reduced/scan.json and shown on the page of benchmarks.reduced.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from ad_jobs.fitting.intent import resolve
from ad_jobs.images.decode import decode
from ad_jobs.images.domain import DomainFile
from ad_jobs.images.policy import Limits
from ad_jobs.results.read import read_scores
from ad_jobs.scoring.calibration import calibrate_on
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import publish, write_calibration
from ad_jobs.specs import FitSpec
from benchmarks.decode import field
from benchmarks.reduced import INPUTS_PX, fitted
from benchmarks.reduced_page import SCANS, write_page
from benchmarks.reduced_pictures import Picture, twin

DETECTOR = "linear"
# By the frames' side.
IMAGES = {512: 2000, 2048: 200}
FEW = 8
# Different pictures of an archive, each several times: a scan knows nothing of it.
PICTURES = 10
POLL_S = 0.2


class Spent(NamedTuple):
    """What a command took: clock, and the CPU of it and of all below it; of these, of the decoders' processes."""

    wall_s: float
    cpu_s: float
    decoders_s: float


def archive(folder: Path, side_px: int, count: int) -> Path:
    """So many files, a smooth field with grain each."""
    folder.mkdir(parents=True)
    grain = np.random.default_rng(0)
    base = field(side_px, 1)[..., 0] >> 4
    for number in range(count):
        path = folder / f"{number:04}.dcm"
        if number < PICTURES:
            stored = np.clip(base + grain.integers(-8, 8, base.shape), 0, 4095).astype(np.uint16)
            path.write_bytes(twin(Picture(stored, 12, "scan", False, {}), "J2K lossless"))
        else:
            os.link(folder / f"{number % PICTURES:04}.dcm", path)
    return folder


def models(folder: Path) -> dict[str, str]:
    """Folders of one detector as a model that decodes whole frames, and as one that does not."""
    intent = resolve(FitSpec(detector=DETECTOR, normal="pictures", out="nowhere")).in_grey()
    grey = field(min(IMAGES), 1)[..., 0] >> 4
    normals = [Picture(np.roll(grey, 9 * n, 1), 12, str(n), False, {}) for n in range(30)]
    images = np.stack([decode(twin(one, "native"), intent.policy, Limits()).frames[0].pixels for one in normals])
    detector = fitted(DETECTOR, images, [one.group for one in normals], images).detector
    found = {}
    for how in ("full", "reduced"):
        policy = intent.policy.model_copy(update={"decode": how})
        found[how] = str(folder / how)
        record = publish(found[how], DETECTOR, detector, policy, {"seed": 0}, DomainFile())
        given = calibrate_on(
            detector, map(HeldOut, images), model_id=record["model_id"], source="benchmark", max_fpr=0.5
        )
        write_calibration(found[how], given)
    return found


def spent_by(command: list[str]) -> Spent:
    """What the command takes; SystemExit where it fails."""
    start, seen = time.perf_counter(), dict[tuple[int, float], tuple[float, bool]]()
    with tempfile.TemporaryFile() as errors:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while running.poll() is None:
            _look(running.pid, seen)
            time.sleep(POLL_S)
        if running.returncode:
            errors.seek(0)
            raise SystemExit(errors.read()[-2000:].decode(errors="replace"))
    wall_s = time.perf_counter() - start
    return Spent(
        wall_s, sum(cpu for cpu, _ in seen.values()), sum(cpu for cpu, is_decoder in seen.values() if is_decoder)
    )


def _look(pid: int, seen: dict[tuple[int, float], tuple[float, bool]]) -> None:
    """Keep the CPU of a process and of all below it, as far as they have come."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            times = member.cpu_times()
            name = member.pid, member.create_time()
            # One that ends has no command line any more.
            is_decoder = (name in seen and seen[name][1]) or any("guard import serve" in w for w in member.cmdline())
            seen[name] = (times.user + times.system, is_decoder)
        except psutil.NoSuchProcess:
            continue


def measured(folder: Path, source: Path, model: str, count: int) -> dict[str, Any]:
    """One scan."""
    out = folder / "runs" / f"{source.name}-{Path(model).name}"
    spent = spent_by([sys.executable, "-m", "ad_jobs", "scan", str(source), "--model", model, "--out", str(out)])
    rows = read_scores(str(out))
    assert (rows["status"] == "scored").sum() == count
    return {"images": count, **spent._asdict(), "decode_ms": float(rows["decode_ms"].median())}


def main() -> None:
    """Measure, store, and write the page."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="reduced-scan-") as scratch:
        folder = Path(scratch)
        ways = models(folder / "models")
        few = measured(folder, archive(folder / "few", min(IMAGES), FEW), ways["reduced"], FEW)
        for side_px, count in IMAGES.items():
            source = archive(folder / str(side_px), side_px, count)
            for how, model in ways.items():
                rows.append({"side_px": side_px, "decode": how, **measured(folder, source, model, count)})
                print(rows[-1], flush=True)
    found = {"detector": DETECTOR, "input_px": INPUTS_PX[0], "load": os.getloadavg()[0], "few": few, "rows": rows}
    SCANS.parent.mkdir(parents=True, exist_ok=True)
    SCANS.write_text(json.dumps(found, indent=1) + "\n")
    write_page()


if __name__ == "__main__":
    main()
