"""How much of a known movement FYD's image transformer undoes.

    python -m benchmarks.alignment [--epochs 60] [--seed 0] [--only br35h]

It is fitted on the normal images of a data set of quality.yaml, as `fit` would, and looks at normal images that were
held out (whole groups).
Of each, two copies are turned by up to 20 degrees and shifted by up to a tenth of a side, by amounts of their own.
The aligned frame is arbitrary up to a movement common to all images, so what counts is by how much the frames differ in
which the two copies are seen: nothing where the movement is undone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from ad_jobs.fitting.split import split_by_group
from ad_jobs.images.decode import decode
from ad_jobs.images.model_input import to_input
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine, versions
from benchmarks import datasets
from models import registry
from models.detector import Batch, InputSpec
from models.fyd import FYD
from models.parts.stn import random_movements, warp
from models.runtime import Runtime

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "alignment"
DATA = ("br35h", "br35h, turned", "phantom", "phantom, turned")
SIZE_PX = 128
# Pairs of copies of every held-out image.
PAIRS = 4
MAX_ANGLE_DEG, MAX_SHIFT = 20.0, 0.1


class Left(NamedTuple):
    """What two copies' frames differ by: degrees, and shares of a side."""

    angle_deg: Tensor
    shift: Tensor


def normal_images(name: str) -> tuple[Tensor, list[str]]:
    """The normal images to fit on, float32 [N, 3, SIZE_PX, SIZE_PX] in [0, 1], and their groups."""
    data = yaml.safe_load((HERE / "quality.yaml").read_text())["data"][name]
    given = Path(datasets.lists(data, BUILD / name.replace(", ", "-"), 0).normal)
    if given.is_dir():
        # Phantoms, named by patient and slice.
        pairs = [(path, path.name.partition("-")[0]) for path in sorted(given.glob("*.dcm"))]
    else:
        pairs = [(Path(row["image"]), row["group"]) for row in datasets.read_rows(given)]
    policy, limits = PixelPolicy(channels=3, height_px=SIZE_PX, width_px=SIZE_PX), Limits()
    frames = [decode(path.read_bytes(), policy, limits).frames[0].pixels for path, _ in pairs]
    return torch.from_numpy(np.stack([to_input(pixels, 3) for pixels in frames])), [group for _, group in pairs]


def fitted(images: Tensor, epochs: int, seed: int) -> FYD:
    """FYD after its phase `align` alone."""
    torch.manual_seed(seed)
    config = registry.configure("fyd", {"align_epochs": epochs})
    detector = registry.create("fyd", config, InputSpec(channels=3, height_px=SIZE_PX, width_px=SIZE_PX))
    assert isinstance(detector, FYD)
    learner = detector.learner(Runtime(seed=seed))
    learner.start("align")
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        for chosen in torch.split(torch.from_numpy(order.permutation(len(images))), config.batch_size):
            learner.step(Batch(images[chosen], chosen))
        learner.end_epoch()
    learner.finish("align")
    return detector.eval()


@torch.no_grad()
def left_of(detector: FYD, images: Tensor, seed: int, *, aligned: bool = True) -> Left:
    """What is left between the copies of `images`; not `aligned`: how they were moved."""
    draw = torch.Generator().manual_seed(seed)
    # Also where a fit would find more in images as they lie.
    transformer = detector.image_transformer
    assert transformer is not None
    found = []
    for _ in range(PAIRS):
        frames = []
        for _ in range(2):
            moved = random_movements(len(images), draw, max_angle_deg=MAX_ANGLE_DEG, max_shift=MAX_SHIFT, aspect=1.0)
            frames.append(moved @ transformer(warp(images, moved)) if aligned else moved)
        found.append(torch.linalg.inv(frames[0]) @ frames[1])
    between = torch.cat(found)
    # A side is 2 long.
    return Left(torch.rad2deg(torch.atan2(between[:, 1, 0], between[:, 0, 0])).abs(), between[:, :2, 2].norm(dim=1) / 2)


def row(name: str, when: str, left: Left) -> str:
    values = [
        f"{float(x.quantile(share)):.{digits}f}"
        for x, digits in ((left.angle_deg, 1), (100 * left.shift, 1))
        for share in (0.5, 0.9)
    ]
    return f"| {name} | {when} | {' | '.join(values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only data sets whose name contains this text")
    args = parser.parse_args()
    lines = []
    for name in (name for name in DATA if args.only in name):
        images, groups = normal_images(name)
        fit, held_out = split_by_group(groups, args.seed)
        start = time.perf_counter()
        detector = fitted(images[fit], args.epochs, args.seed)
        spent = time.perf_counter() - start
        judged = images[held_out]
        lines += [
            row(name, f"moved ({len(judged)} images x {PAIRS} pairs)", left_of(detector, judged, 1, aligned=False)),
            row(name, f"aligned, fitted on {len(fit)} in {spent:.0f} s", left_of(detector, judged, 1)),
        ]
        print("\n".join(lines[-2:]), flush=True)
    text = [
        "# What FYD's alignment leaves of a known movement",
        "",
        f"Held-out normal images at {SIZE_PX} px, two copies of each turned by up to {MAX_ANGLE_DEG:g} degrees and "
        f"shifted by up to {100 * MAX_SHIFT:g} % of a side: by how much the frames differ in which they are seen.",
        f"Seed {args.seed}, {args.epochs} epochs, {machine()['cpu']}, {torch.get_num_threads()} thread(s), torch "
        f"{versions()['torch']}; times were taken beside other work.",
        "",
        "| data | copies | angle, median (degrees) | angle, 90 % | shift, median (% of a side) | shift, 90 % |",
        "|---|---|---|---|---|---|",
        *lines,
    ]
    (HERE / "results" / "alignment.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
