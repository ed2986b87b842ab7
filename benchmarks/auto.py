"""How well `fit --detector auto` chooses: every candidate fitted, judged by synthetic defects, and by real labels.

python -m benchmarks.auto [--only NAME] [--seed 0] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from ad_jobs.evaluation.image_metrics import image_auroc
from ad_jobs.evaluation.labels import read_labels
from ad_jobs.fitting.loop import Batches, train
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scoring.scorer import Scorer
from benchmarks.datasets import Lists, lists
from benchmarks.held_out import Decoded, decoded, split
from benchmarks.quality import slug
from models import artifact, registry
from models.detector import Detector, InputSpec
from models.runtime import Runtime

KINDS = ("linear", "knn", "padim", "pmad", "mkd", "fyd")
DIGITS = (1, 5, 8)
PLAN = Path(__file__).parent / "quality.yaml"


class Stack:
    """Decoded images in memory, as a fit reads them."""

    def __init__(self, images: list[Decoded]) -> None:
        self.pixels = [image.pixels for image in images]

    def read(self, positions: Any) -> Any:
        return (self.pixels[n] for n in positions)


def sets() -> dict[str, dict[str, Any]]:
    """The data sets by name."""
    plan = yaml.safe_load(PLAN.read_text())["data"]
    found = {name: plan[name] for name in ("br35h", "elpv", "deeppcb", "phantom", "br35h, turned", "phantom, turned")}
    for digit in DIGITS:
        found[f"digit {digit}"] = {
            "kind": "digits",
            "root": "../shared/data/mnist/mnist.npz",
            "digit": digit,
            "normal": 500,
            "tested": 1000,
        }
    return found


def candidate(kind: str, grey: bool) -> tuple[Detector, PixelPolicy]:
    """A new detector of the preset `fast`, and its pixel policy."""
    entry, preset = registry.entry(kind), registry.preset(kind, "fast")
    channels = 1 if entry.takes_grey and grey else entry.channels
    height, width = preset.size_px
    spec = InputSpec(channels=channels, height_px=height, width_px=width)
    detector = registry.create(kind, registry.configure(kind, dict(preset.options)), spec)
    return detector, PixelPolicy(channels=channels, height_px=height, width_px=width)


def fitted(kind: str, given: Lists, folder: Path, seed: int) -> None:
    """Fit one candidate, and keep it with what it scores of the labelled images."""
    if (folder / "truth.npz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    grey = all(len(image.pixels) == 1 for image in normals(given, 64))
    torch.manual_seed(seed)
    detector, policy = candidate(kind, grey)
    fit_on, held_out = split(normals(given, policy.height_px), seed)
    start = time.perf_counter()
    pixels = Stack(fit_on + held_out)
    positions = {"train": list(range(len(fit_on))), "held_out": list(range(len(fit_on), len(fit_on) + len(held_out)))}
    runtime = Runtime(seed=seed)
    batches = Batches(detector, runtime, pixels, positions)
    train(detector, detector.learner(runtime), batches, save=lambda _: None, say=lambda _: None)
    detector.eval()
    seconds = time.perf_counter() - start
    artifact.save(folder, kind, detector, policy.model_dump(mode="json"), {"seconds": seconds})
    archive, labels = labels_of(given, decoded(given.archive, policy, Limits()))
    start = time.perf_counter()
    scores = np.array([frame.score for frame in Scorer(detector).score(one.pixels for one in archive)])
    per_s = len(scores) / (time.perf_counter() - start)
    auroc = image_auroc(scores, labels)
    np.savez(folder / "truth.npz", scores=scores, labels=labels)
    told = {"kind": kind, "auroc": auroc, "fit_s": round(seconds, 1), "images_per_s": round(per_s, 1)}
    (folder / "truth.json").write_text(json.dumps(told))
    print(folder.parent.name, told, flush=True)


_NORMALS: dict[tuple[str, int], list[Decoded]] = {}


def normals(given: Lists, side: int) -> list[Decoded]:
    """The normal images of a set, decoded once a size."""
    key = given.normal, side
    if key not in _NORMALS:
        _NORMALS[key] = decoded(given.normal, PixelPolicy(channels=3, height_px=side, width_px=side), Limits())
    return _NORMALS[key]


def labels_of(given: Lists, archive: list[Decoded]) -> tuple[list[Decoded], NDArray[np.bool_]]:
    """The labelled images, and whether each is anomalous."""
    table = read_labels(str(given.labels)).table.astype({"frame": object})
    told = {
        (row.uri, None if pd.isna(row.frame) else int(row.frame)): bool(row.anomalous)
        for row in table.itertuples(index=False)
    }
    found = [(one, told.get((one.uri, one.frame), told.get((one.uri, None)))) for one in archive]
    known = [(one, label) for one, label in found if label is not None]
    return [one for one, _ in known], np.array([label for _, label in known], bool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/auto"))
    arguments = parser.parse_args()
    for name, data in sets().items():
        if not name.startswith(arguments.only):
            continue
        given = lists(data, (arguments.work / "lists" / slug(name)).resolve(), arguments.seed)
        for kind in arguments.kinds:
            fitted(kind, given, arguments.work / slug(name) / f"seed-{arguments.seed}" / kind, arguments.seed)


if __name__ == "__main__":
    main()
