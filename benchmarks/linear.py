"""What the parts of `linear` are worth: gradients as vectors or lengths, the ridge, cells, grids, scores.

    python -m benchmarks.linear

Fits and judges on br35h and elpv as benchmarks/quality.py does, three seeds, without Ray.
One part is changed at a time.
Every score is judged here, to see what the choice among them is worth; the one that the fit chose is named.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from torch import Tensor

from ad_jobs.evaluation.image_metrics import image_auroc
from ad_jobs.evaluation.labels import read_labels
from ad_jobs.images.model_input import to_input
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine, versions
from benchmarks.datasets import lists
from benchmarks.held_out import Decoded, decoded, split
from benchmarks.quality import slug
from benchmarks.quality_page import RESULTS, spread
from models.detector import Batch, InputSpec
from models.linear import SCALES, Linear, LinearConfig
from models.parts.error_score import WAYS
from models.parts.similarity import gms_map
from models.runtime import Runtime

SIZE = 64
SPEC = InputSpec(channels=1, height_px=SIZE, width_px=SIZE)
POLICY = PixelPolicy(channels=1, height_px=SIZE, width_px=SIZE)
SEEDS = (0, 1, 2)
PLAN = Path(__file__).parent / "quality.yaml"

# Options, and what of the module is another.
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "lengths of gradients (GMS)": ({}, {"gradient_distance": lambda x, y, _: gms_map(x, y)}),
    "one scale of gradients": ({}, {"SCALES": 1}),
    "without mirror images": ({}, {"_with_mirrored": lambda sums, _: sums}),
    "ridge 0.02": ({}, {"RIDGES": (0.02,)}),
    "ridge 0.5": ({}, {"RIDGES": (0.5,)}),
    "ridge 0.02, lengths of gradients": ({}, {"RIDGES": (0.02,), "gradient_distance": lambda x, y, _: gms_map(x, y)}),
    "cells of 4": ({"cells": (4,)}, {}),
    "cells of 8": ({"cells": (8,)}, {}),
    "cells of 2, 4, 8 and 16": ({"cells": (2, 4, 8, 16)}, {}),
    "grid of 64, cells of 8 and 16": ({"grid": 64, "cells": (8, 16)}, {}),
    "patches of 16 in a grid of 32": ({"patch": 16}, {}),
    "patches of 16 in a grid of 64": ({"patch": 16, "grid": 64}, {}),
}


def stacked(images: list[Decoded]) -> Tensor:
    return torch.from_numpy(np.stack([to_input(image.pixels, 1) for image in images]))


def in_batches(images: Tensor) -> list[Batch]:
    positions = torch.arange(len(images))
    return [Batch(*part) for part in zip(images.split(64), positions.split(64), strict=True)]


def fitted(config: LinearConfig, train: Tensor, held_out: Tensor, seed: int) -> Linear:
    detector = Linear(config, SPEC).eval()
    learner = detector.learner(Runtime(seed=seed))
    for phase in learner.phases:
        learner.start(phase.name)
        for batch in in_batches(held_out if phase.images == "held_out" else train):
            learner.step(batch)
        learner.end_epoch()
        learner.finish(phase.name)
    return detector


def main() -> None:
    plan = yaml.safe_load(PLAN.read_text())["data"]
    rows = []
    for name in ("br35h", "elpv"):
        given = lists(plan[name], Path("build/quality").resolve() / "lists" / slug(name) / "all", 0)
        normal, judged = (decoded(source, POLICY, Limits()) for source in (given.normal, given.archive))
        labels = read_labels(str(given.labels)).table["anomalous"].to_numpy(bool)
        seen = stacked(judged)
        for part, (options, changed) in PARTS.items():
            values, ways, ridges, spent = [], [], [], []
            for seed in SEEDS:
                train, held_out = (stacked(images) for images in split(normal, seed))
                with patch.multiple("models.linear", **changed or {"SCALES": SCALES}), torch.no_grad():
                    start = time.perf_counter()
                    detector = fitted(LinearConfig(**options), train, held_out, seed)
                    spent.append(time.perf_counter() - start)
                    found = torch.cat([detector.error_score.every_way(detector.errors(x)) for x in seen.split(64)])
                values.append([image_auroc(column.numpy(), labels) for column in found.T])
                ways.append(list(WAYS)[int(detector.error_score.way)])
                ridges.append(float(detector.ridge))
            columns = [spread(each) for each in np.array(values, float).T]
            chosen, used = ", ".join(dict.fromkeys(ways)), ", ".join(f"{ridge:g}" for ridge in dict.fromkeys(ridges))
            rows.append(f"| {name} | {part} | {' | '.join(columns)} | {chosen} | {used} | {np.mean(spent):.1f} |")
            print(rows[-1], flush=True)
    text = [
        "# Linear masked inpainting, part by part",
        "",
        "Image AUROC on the test images of br35h and elpv by every score, mean and standard deviation over "
        f"{len(SEEDS)} seeds (of what is held out, and of the synthetic defects), 64 px input; the score and the ridge "
        f"that the fit chose, and its seconds. {machine()['cpu']}, {torch.get_num_threads()} thread(s), "
        f"torch {versions()['torch']}.",
        "",
        f"| data | part | {' | '.join(way.replace('_', ', ') for way in WAYS)} | chosen | ridge | fit s |",
        "|" + "---|" * (5 + len(WAYS)),
        *rows,
    ]
    (RESULTS / "linear.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
