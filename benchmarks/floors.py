"""What needs no detector: how far the tests of benchmarks/quality.py are told by trifles. One JSON a data set.

    python -m benchmarks.floors [--config benchmarks/quality.yaml] [--only NAME] [--work FOLDER]

A detector that is no better than one of these has learned nothing of the images.
Some do not even look: how many bytes a file has, how many pixels, and of which aspect.
They are given in the direction that tells more, as a set is to be judged by the most that may leak.
The others measure how far an image lies from the normal ones in grey pixels at 32 x 32: by its brightness, its mean
gradient, what 100 principal components leave of it, and its nearest normal neighbour.
Each learns from what a fit with the same seed learns from; thresholds are from what that fit holds out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from ad_jobs.evaluation.image_metrics import image_auroc
from ad_jobs.evaluation.labels import join, read_labels
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine, versions
from ad_jobs.schema import SCORED
from benchmarks.datasets import lists
from benchmarks.held_out import Decoded, decoded, sensitivities, split
from benchmarks.quality import slug
from benchmarks.quality_page import RESULTS, write_pages

SIDE = 32
POLICY = PixelPolicy(channels=1, height_px=SIDE, width_px=SIDE)
SEEDS = (0, 1, 2)
COMPONENTS = 100

Vectors = NDArray[np.float64]
# From vectors to learn from, vectors to score: larger is more abnormal.
Floor = Callable[[Vectors, Vectors], Vectors]


def brightness(fitted: Vectors, seen: Vectors) -> Vectors:
    """How far the mean lies from that of normals, either way."""
    return np.abs(seen.mean(1) - fitted.mean())


def gradient(fitted: Vectors, seen: Vectors) -> Vectors:
    """How far the mean length of gradients lies from that of normals, either way."""
    return np.abs(_steepness(seen) - _steepness(fitted).mean())


def _steepness(vectors: Vectors) -> Vectors:
    down, across = np.gradient(vectors.reshape(-1, SIDE, SIDE), axis=(1, 2))
    return np.hypot(down, across).mean((1, 2))


def principal_components(fitted: Vectors, seen: Vectors) -> Vectors:
    """Mean square of what the principal components of normals leave."""
    mean = fitted.mean(0)
    _, _, rows = np.linalg.svd(fitted - mean, full_matrices=False)
    kept = rows[:COMPONENTS]
    centred = seen - mean
    return np.square(centred - centred @ kept.T @ kept).mean(1)


def nearest_neighbour(fitted: Vectors, seen: Vectors) -> Vectors:
    """Distance to the nearest normal."""
    squared = np.square(seen).sum(1)[:, None] - 2 * seen @ fitted.T + np.square(fitted).sum(1)
    return np.sqrt(squared.min(1).clip(0))


LOOKS: dict[str, Floor] = {
    "mean brightness": brightness,
    "mean gradient": gradient,
    f"residual of {COMPONENTS} principal components": principal_components,
    "nearest normal neighbour": nearest_neighbour,
}
BLIND: dict[str, Callable[[Decoded], float]] = {
    "bytes of the file": lambda image: image.bytes or 0,
    "number of pixels": lambda image: image.rows * image.columns,
    "aspect": lambda image: image.columns / image.rows,
}


def floors(name: str, data: dict[str, Any], work: Path) -> dict[str, Any]:
    """Every floor on one data set, for every seed."""
    given = lists(data, work / "lists" / slug(name) / "all", 0)
    labels = read_labels(str(given.labels))
    images, normal = (decoded(source, POLICY, Limits()) for source in (given.archive, given.normal))

    def judged(scores: Sequence[float] | Vectors) -> tuple[Vectors, NDArray[np.bool_]]:
        """Scores and labels of what is labelled, as `evaluate` joins them."""
        rows = pd.DataFrame({"uri": [image.uri for image in images], "frame": [image.frame for image in images]})
        table = join(labels, rows.assign(status=SCORED, score=scores, flagged=False, heatmap=None), len(rows)).table
        table = table[table["status"] == SCORED]
        return table["score"].to_numpy(np.float64), table["anomalous"].to_numpy(bool)

    found: dict[str, list[dict[str, Any]]] = {}
    for floor, of in BLIND.items():
        auroc = image_auroc(*judged([of(image) for image in images]))
        assert auroc is not None, f"{name}: all judged images are of one class"
        found[floor] = [{"image_auroc": max(auroc, 1 - auroc)}]
    seen = _vectors(images)
    for seed in SEEDS:
        fitted, held_out = (_vectors(part) for part in split(normal, seed))
        for floor, score in LOOKS.items():
            scores, anomalous = judged(score(fitted, seen))
            rates = sensitivities(score(fitted, held_out), scores, anomalous)
            found.setdefault(floor, []).append({"image_auroc": image_auroc(scores, anomalous), "at_rates": rates})
    return {"data": name, "seeds": list(SEEDS), "floors": found, "machine": machine(), "versions": versions()}


def _vectors(images: list[Decoded]) -> Vectors:
    return np.stack([image.pixels.ravel() for image in images]) / 65535.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "quality.yaml")
    parser.add_argument("--only", default="", help="only data sets whose name contains this text")
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="folder for lists")
    arguments = parser.parse_args()
    folder = RESULTS / "floors"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in yaml.safe_load(arguments.config.read_text())["data"].items():
        path = folder / f"{slug(name)}.json"
        # A set without anomalous images to fit on is judged as that with them, or on more.
        if ("anomalous" in data and data["kind"] != "phantom") or path.exists() or arguments.only not in name:
            continue
        path.write_text(json.dumps(floors(name, data, arguments.work.resolve()), indent=1) + "\n")
        print(path.name, flush=True)
    write_pages()


if __name__ == "__main__":
    main()
