"""What a fit of the patch memory (`knn`) takes: memory and time, by the number of images.

    python -m benchmarks.patch_memory [--images 70 1000] [--size 256]

Each fit has a process of its own and one thread, as a worker of a scan has; its images are made batch by batch, so
that memory is what the fit itself holds: torch, the network, the sample of patches and the coreset.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from ad_jobs.results.run import machine, versions
from benchmarks.engines import held_mib, textures
from models import registry
from models.detector import Batch, InputSpec
from models.runtime import Runtime

RESULTS = Path(__file__).parent / "results" / "patch_memory.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[70, 1000])
    parser.add_argument("--size", type=int, default=256)
    # Of a process of its own.
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone is not None:
        torch.set_num_threads(1)
        print(json.dumps(alone(given.alone, given.size)))
        return
    rows = []
    for images in given.images:
        command = [sys.executable, "-m", "benchmarks.patch_memory", "--alone", str(images), "--size", str(given.size)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(
            f"| {images:,} | {found['loaded_mib']:.0f} | {found['peak_mib']:.0f} | {found['features_s']:.0f} | "
            f"{found['coreset_s']:.0f} | {1e3 * found['features_s'] / images:.0f} |"
        )
        RESULTS.write_text(page(rows, given.size))
    print(RESULTS.read_text())


def alone(images: int, side: int) -> dict[str, float]:
    """What a fit takes in this process: MiB before it and at most, CPU seconds of features and of the coreset."""
    torch.manual_seed(0)
    spec = InputSpec(channels=3, height_px=side, width_px=side)
    detector = registry.create("knn", registry.configure("knn", {}), spec)
    learner = detector.learner(Runtime())
    loaded_mib, spent = held_mib(), 0.0
    learner.start("memory")
    for rows in torch.arange(images).split(detector.config.batch_size):
        batch = Batch(textures(len(rows), spec, seed=int(rows[0])), rows)
        start = time.process_time()
        learner.step(batch)
        spent += time.process_time() - start
    start = time.process_time()
    learner.end_epoch()
    learner.finish("memory")
    coreset_s = time.process_time() - start
    return {"loaded_mib": loaded_mib, "peak_mib": held_mib(), "features_s": spent, "coreset_s": coreset_s}


def page(rows: list[str], side: int) -> str:
    """The results, with the machine."""
    here, config = machine(), registry.configure("knn", {}).model_dump()
    return "\n".join(
        [
            "# Fits of the patch memory",
            "",
            f"`python -m benchmarks.patch_memory` on {here['cpu']}, {here['cores']} cores, one thread, load average "
            f"{os.getloadavg()[0]:.0f}; torch {versions()['torch']}.",
            f"`knn` as it is ({config['backbone']}, {config['candidates']:,} candidates, {config['items']:,} items) on "
            f"images of {side}x{side}, in batches of {config['batch_size']}.",
            "Memory is the most that the process held, before the fit and in it; seconds are CPU time.",
            "It does not grow with the images: the sample, from which the coreset is chosen, has a fixed size, which "
            "32 images of 256 px fill (1,024 patches each).",
            "",
            "| images | MiB before | MiB | features s | coreset s | features, ms an image |",
            "|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
