"""What a detector costs on one thread of a CPU: in torch and in ONNX Runtime, in batches of 1, 8 and 32.

    python -m benchmarks.engines [--kinds padim,mkd] [--sizes 64,128,256] [--openvino]

Detectors are fitted on a few textures: times do not hang on what a fit has learnt.
What is measured replaces its rows of engines.md; the others stay.
Those that the engine does not take are measured in torch alone.
Times are CPU time of this process, the least of a few calls: what else keeps the machine busy counts little.
Memory is the most that a process of its own came to hold, model, batch of 32 and all.
With --openvino (pip install openvino) the same graph runs there, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ad_jobs.results.run import machine, versions
from ad_jobs.scoring.engine import OnnxRuntime
from ad_jobs.scoring.tolerances import share_off
from models import artifact, registry
from models.detector import Batch, Detector, InputSpec, Scores
from models.graph import INPUT, OUTPUTS, to_onnx
from models.runtime import Runtime

RESULTS = Path(__file__).parent / "results" / "engines.md"
KINDS = ("padim", "knn", "mkd", "linear", "pmad", "ssm", "autoencoder", "cyclegan", "fyd", "ssm_residual")
SIZES = (64, 128, 256)
BATCHES = (1, 8, 32)
ROUNDS = 4
# Of a fit that only has to end.
EPOCHS = 2

Scoring = Callable[[Tensor], Scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--openvino", action="store_true")
    # Of a process of its own: its model, and what is to score it.
    parser.add_argument("--alone", nargs=2, metavar=("MODEL", "ENGINE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.alone:
        print(json.dumps(alone(Path(given.alone[0]), given.alone[1])))
        return
    for kind in given.kinds.split(","):
        for side in map(int, given.sizes.split(",")):
            rows = kept(kind, side) + measured(kind, side, openvino=given.openvino)
            # As far as it is: it takes long.
            RESULTS.write_text(page(sorted(rows, key=place)))
    print(RESULTS.read_text())


def kept(kind: str, side: int) -> list[str]:
    """The rows that engines.md has of other detectors, or of this one at other sizes."""
    rows = [line for line in RESULTS.read_text().splitlines() if line.startswith(tuple(f"| {one} |" for one in KINDS))]
    return [row for row in rows if not row.startswith(f"| {kind} | {side} |")]


def place(row: str) -> tuple[int, int]:
    """Where a row stands: by kind and size, engines as they were measured."""
    kind, side = (cell.strip() for cell in row.split("|")[1:3])
    return KINDS.index(kind), int(side)


def measured(kind: str, side: int, *, openvino: bool) -> list[str]:
    """The rows of one detector: of each engine that takes it, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="retroscan-engines-") as scratch:
        detector = fitted(kind, side)
        artifact.save(Path(scratch), kind, detector, {}, {})
        engines = ["torch"]
        if OnnxRuntime.takes(detector):
            engines += ["ONNX Runtime", *(["OpenVINO"] if openvino else [])]
        found = {}
        for engine in engines:
            command = [sys.executable, "-m", "benchmarks.engines", "--alone", scratch, engine]
            found[engine] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [
        f"| {kind} | {side} | {engine} | {' | '.join(f'{ms:.2f}' for ms in one['ms'])} | {one['load_s']:.1f} | "
        f"{one['peak_mib']:.0f} | {one['score']:.0e} | {one['heatmap']:.0e} | {os.getloadavg()[0]:.0f} |"
        for engine, one in found.items()
    ]


def fitted(kind: str, side: int) -> Detector:
    """A detector fitted on 24 textures, 8 held out."""
    torch.manual_seed(0)
    entry = registry.entry(kind)
    spec = InputSpec(channels=entry.channels, height_px=side, width_px=side, needs_anomalous=entry.needs_anomalous)
    trained = {"epochs": EPOCHS} if "epochs" in entry.config_class().model_fields else {}
    detector = registry.create(kind, registry.configure(kind, trained), spec)
    images, bad = textures(32, spec, seed=0), textures(24, spec, seed=1)
    learner = detector.learner(Runtime())
    for phase in learner.phases:
        learner.start(phase.name)
        rows = torch.arange(24, 32) if phase.images == "held_out" else torch.arange(24)
        for _ in range(phase.epochs):
            for some in rows.split(8):
                learner.step(Batch(images[some], some, bad[:8] if spec.needs_anomalous else None))
            learner.end_epoch()
        learner.finish(phase.name)
    return detector.eval()


def textures(count: int, spec: InputSpec, seed: int) -> Tensor:
    """Sums of a few waves with noise, float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: spec.height_px, : spec.width_px] / spec.height_px
    waves = [
        np.sin(2 * np.pi * (rng.uniform(1, 8, (4, 1, 1)) * x + rng.uniform(1, 8, (4, 1, 1)) * y)).sum(0)
        for _ in range(count)
    ]
    grey = 0.5 + 0.1 * np.stack(waves)[:, None] + rng.normal(0, 0.02, (count, spec.channels, *spec.size_px))
    return torch.from_numpy(np.clip(grey, 0, 1).astype(np.float32))


def alone(model: Path, engine: str) -> dict[str, Any]:
    """What the model takes in this process: ms an image of each batch, seconds to load, memory, differences."""
    start = time.process_time()
    detector = artifact.load(model).detector
    score, exact = of_engine(detector, engine), detector.score
    load_s = time.process_time() - start
    images = textures(max(BATCHES), detector.spec, seed=2)
    ms = [least_ms(score, images[:size]) for size in BATCHES]
    # Before torch has scored, which takes memory of its own.
    peak_mib = held_mib()
    off = [share_off(*(part.numpy() for part in pair)) for pair in zip(score(images), exact(images), strict=True)]
    return {"ms": ms, "load_s": load_s, "peak_mib": peak_mib, "score": off[0], "heatmap": off[1]}


def held_mib() -> float:
    """The most memory that this process held; getrusage gives that of the process that started it, if it held more."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def of_engine(detector: Detector, engine: str) -> Scoring:
    """The detector's `score`, or what an engine makes of it."""
    if engine == "torch":
        return detector.score
    if engine == "ONNX Runtime":
        made = OnnxRuntime(detector)
        made.score(textures(1, detector.spec, seed=3))
        return made.score
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(to_onnx(detector)), "CPU", options)

    def score(images: Tensor) -> Scores:
        found = compiled({INPUT: images.numpy()})
        return Scores(*(torch.from_numpy(found[name].copy()) for name in OUTPUTS))

    return score


def least_ms(score: Scoring, images: Tensor) -> float:
    """Milliseconds of CPU an image, the least of a few calls after a first one."""
    score(images)
    spent = []
    for _ in range(ROUNDS):
        start = time.process_time()
        score(images)
        spent.append(1e3 * (time.process_time() - start) / len(images))
    return min(spent)


def page(rows: list[str]) -> str:
    """The results, with the machine."""
    found, here = versions(), machine()
    return "\n".join(
        [
            "# Engines",
            "",
            f"{here['cpu']}, {here['cores']} cores, one thread; torch {found['torch']}, onnxruntime "
            f"{found['onnxruntime']}. `python -m benchmarks.engines` (`--openvino` for its rows, of version 2026.4.1).",
            "",
            "Milliseconds of CPU time an image, in batches of 1, 8 and 32; seconds of CPU to load the model, with its "
            "graph written and read; the most memory of a process that scored; by how much score and heatmap "
            "differ from torch's, as a share of the largest; and the machine's load, which takes caches and memory's "
            "bandwidth, and so moves CPU time, too. Rows without it are of before, on a quiet machine.",
            "",
            "Installed, ONNX Runtime takes 78 MB and `onnx` 31 MB, OpenVINO 180 MB, torch 1.2 GB.",
            "Image by image both engines are about as fast, and scans go so where that is fastest.",
            "ONNX Runtime keeps no memory between batches, which larger ones pay for: keeping it took a GiB of PaDiM "
            "at 256 px.",
            "linear, pmad, ssm and the auto-encoder compare images with what is guessed of them in float64: a score is "
            "a small difference divided by its small spread among normals. In ONNX Runtime they do so, too; there "
            "resampling is a product with a matrix, as it has float64 for products, but not for pooling and resizing.",
            "In float32 `linear` would take 0.15 to 0.18 ms instead of 0.24 to 0.32, and be off by 6e-6 on solar "
            "cells, where normal images have a spread of 0.05, and by 0.08 where guesses are all but exact (2e-7).",
            "The rows with torch alone are of detectors that are no graph: a mask of ssm_residual is a factorisation, "
            "and fyd turns maps for each image, in float64, and pools them to sizes that are no constants.",
            "The tracer takes 0.6 s of CPU to write PaDiM at 64 px; `torch.export` and its translation took 17 s.",
            "",
            "| detector | px | engine | ms at 1 | ms at 8 | ms at 32 | load s | peak MiB | score off | heatmap off "
            "| load |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "On the judged images of brains (br35h), one thread, CPU time of one process at a load of 10 to 17: before "
            "is torch as it was, now torch and ONNX Runtime; off is the largest difference of scores from before.",
            "",
            "| detector | px | before, at 1, 8, 32 | torch now | ONNX Runtime now | torch off | ONNX Runtime off |",
            "|---|---|---|---|---|---|---|",
            "| linear | 64 | 2.94, 0.79, 0.43 | 2.05, 0.53, 0.26 | 2.30, 0.40, 0.24 | 0 | 0 |",
            "| linear | 128 | 2.77, 0.74, 0.42 | 1.80, 0.52, 0.37 | 2.34, 0.51, 0.32 | 0 | 0 |",
            "| pmad | 64 | – | 1.30, 0.44, 0.22 | 1.19, 0.27, 0.16 | 0 | 0 |",
            "| pmad | 128 | – | 2.94, 0.54, 0.32 | 1.60, 0.31, 0.20 | 0 | 0 |",
            "| autoencoder | 64 | – | 6.38, 2.28, 1.81 | 1.97, 1.41, 1.51 | 0 | 5e-06 |",
            "| ssm | 64 | 6.93, 3.07, 2.66 | 6.66, 3.04, 2.97 | 2.82, 2.23, 2.29 | 7e-07 | 2e-06 |",
            "",
            "The whole `Scorer` on one thread, before (torch, batches of 32) and with the engine and the batch "
            "measured, 96 grey frames a call: PaDiM at 256 px 53.0 and 19.5 ms an image (batches of 1), MKD at 256 px "
            "62.9 and 22.5 ms, PaDiM at 128 px 9.8 and 6.0 ms, at 64 px 2.3 and 1.3 ms (batches of 8).",
            "Its memory with PaDiM at 256 px, frames taken one by one as in a scan: 1,288 MiB after the first batches, "
            "1,060 MiB with `--batch-size 1`; torch in batches of 32 reached 1,565 MiB, and held 1,026 MiB after them.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
