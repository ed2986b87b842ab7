"""The detectors on this machine's card, from a pack, without Ray, DICOM libraries or a network.

    python -m benchmarks.gpu.run --pack build/gpu-pack --out DIR [--seconds 450] [--device cuda|cpu] [--small]

Appends to DIR/results.jsonl as results come, so that a run that is cut off keeps what it has; benchmarks.gpu.report
makes the page of it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.stages import Bench, Clock

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pydantic", "triton")


class Stage(NamedTuple):
    """A module's function, and its share of the whole time, after which it begins nothing more."""

    name: str
    function: str
    share: float


# In the order of their worth for their length; what one leaves, the next ones have.
STAGES = (
    Stage("agreement", "agreement.run", 0.16),
    Stage("throughput", "throughput.run", 0.26),
    Stage("padim", "quality.run_padim", 0.08),
    Stage("compile", "compiled.run", 0.12),
    Stage("paper", "quality.run_paper", 0.38),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=450.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny images and few of them, to try the code")
    parser.add_argument("--only", default="", help="stages by name, with commas between")
    parser.add_argument("--kinds", default="", help="detectors by name, with commas between")
    given = parser.parse_args()
    whole = Clock(given.seconds)
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.pack, given.out / "results.jsonl", given.device, given.small, _names(given.kinds))
    bench.guard("machine", lambda: _machine(bench, given.seconds))
    for stage in STAGES:
        if (only := _names(given.only)) and stage.name not in only:
            continue
        # Besides its own share, what those before it left; what they took too much is the last one's loss.
        later = sum(other.share for other in STAGES[STAGES.index(stage) + 1 :])
        own = max(stage.share * given.seconds, whole.left() - later * given.seconds)
        clock = Clock(min(own, whole.left()))
        if bench.guard(stage.name, partial(_stage, stage, bench, clock)):
            bench.write("end", of=stage.name, left_s=whole.left())


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _stage(stage: Stage, bench: Bench, clock: Clock) -> None:
    # Imported late: what one stage cannot import must not stop the others.
    module, _, function = stage.function.partition(".")
    found: Callable[[Bench, Clock], None] = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
    found(bench, clock)


def _machine(bench: Bench, seconds: float) -> None:
    import torch

    card = None
    if bench.device == "cuda":
        torch.zeros(1, device="cuda")
        about = torch.cuda.get_device_properties(0)
        card = {
            "name": about.name,
            "memory_gib": about.total_memory / 2**30,
            "multiprocessors": about.multi_processor_count,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    bench.write(
        "machine",
        card=card,
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        seconds=seconds,
        small=bench.small,
    )


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
