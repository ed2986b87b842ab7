"""What a fusion finds beside its members, with and without a bad one among those offered, on sets of quality.yaml.

    python -m benchmarks.fusion [--only NAME] [--seed 1] [--test 240] [--members linear,padim] [--work FOLDER]

Every member scores each image once, resampled from one decoding as in a fused model, and the fusion's score is computed
from theirs: the weighted mean in their spreads, with the weights that `fuse` gives.
Members and what they scored are kept in the work folder; one JSON a data set and seed, and one page of all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from ad_jobs.evaluation.image_metrics import image_auroc
from ad_jobs.evaluation.labels import read_labels
from ad_jobs.fitting.fusion import chosen
from ad_jobs.fitting.synthetic import Judged, judge
from ad_jobs.images.model_input import FULL_SCALE
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine, versions
from ad_jobs.scoring.model_store import open_fitted
from ad_jobs.scoring.scorer import Scorer
from benchmarks.datasets import Lists, lists
from benchmarks.fusion_members import BAD, MEMBERS, member
from benchmarks.held_out import Decoded, decoded, split
from benchmarks.quality import slug
from models.detector import Detector
from models.parts.resample import as_input

PLAN = Path(__file__).parent / "quality.yaml"
RESULTS = Path(__file__).parent / "results"
SETS = ("br35h", "elpv", "deeppcb", "phantom", "br35h, turned")
# Of all members together.
POLICY = PixelPolicy(channels=3, height_px=128, width_px=128)
# Held-out frames that get synthetic defects; `fuse` takes twice as many.
FRAMES = 64

Array = NDArray[Any]


def cell(name: str, data: dict[str, Any], names: Sequence[str], seed: int, most: int, work: Path) -> dict[str, Any]:
    """Members fitted, judged and fused, and held against real labels."""
    given = lists(data, work / "lists" / slug(name), seed)
    found: dict[str, dict[str, Array]] = {}
    for one in names:
        path = work / "arrays" / f"{slug(name)}-{seed}-{one}.npz"
        if not path.exists():
            folder = work / "models" / slug(name) / f"seed-{seed}" / one
            _, detector = open_fitted(member(one, given.normal, seed, folder))
            path.parent.mkdir(exist_ok=True)
            np.savez(path, **scored(detector, given, seed, most))
        found[one] = dict(np.load(path))
    any_one = found[names[0]]
    labels = labelled(given, any_one)
    known = np.array([label is not None for label in labels])
    truth = np.array([bool(label) for label in labels])[known]
    told: dict[str, Any] = {
        "data": name,
        "seed": seed,
        "machine": machine(),
        "versions": versions(),
        "n_held_out": len(any_one["held"]),
        "n_normal": int((~truth).sum()),
        "n_anomalous": int(truth.sum()),
        "auroc": {one: image_auroc(found[one]["test"][known], truth) for one in names},
        "judged": {one: round(float(judged([found[one]]).found()[0]), 4) for one in names},
        "weights": {},
    }
    offers = {"fused": [one for one in names if one != BAD]}
    if BAD in names:
        offers["fused, the bad one offered"] = list(names)
        equal = fused([found[one]["test"] for one in names], [found[one]["held"] for one in names], [1.0] * len(names))
        told["auroc"]["mean of all, the bad one in it"] = image_auroc(equal[known], truth)
    for what, offered in offers.items():
        weights = chosen(judged([found[one] for one in offered]))
        scores = fused([found[one]["test"] for one in offered], [found[one]["held"] for one in offered], weights)
        told["auroc"][what] = image_auroc(scores[known], truth)
        told["weights"][what] = dict(zip(offered, weights, strict=True))
        told["judged"][what] = round(float(judged([found[one] for one in offered]).fused(weights).found()[0]), 4)
    return told


def scored(detector: Detector, given: Lists, seed: int, most: int) -> dict[str, Any]:
    """What a member gives held-out normals, as they are and with defects, and the labelled images."""
    _, held_out = split(decoded(given.normal, POLICY, Limits()), seed)
    images = decoded(given.archive, POLICY, Limits())
    if most and len(images) > most:
        images = [images[n] for n in sorted(np.random.default_rng(0).permutation(len(images))[:most])]
    with patch("ad_jobs.fitting.synthetic.FRAMES", FRAMES):
        found = judge([detector], [one.pixels for one in held_out[:FRAMES]], seed=0)
    return {
        "kinds": found.kinds,
        "normal": found.normal,
        "defective": found.defective,
        "held": scores_of(detector, held_out),
        "test": scores_of(detector, images),
        "uri": [one.uri for one in images],
        "frame": [one.frame for one in images],
    }


def scores_of(detector: Detector, images: Iterable[Decoded]) -> Array:
    """Of images under POLICY, resampled for the detector."""

    def seen() -> Iterable[NDArray[np.uint16]]:
        for one in images:
            whole = torch.from_numpy(one.pixels.astype(np.float32) / FULL_SCALE).unsqueeze(0)
            yield np.rint(as_input(whole, detector.spec)[0].numpy() * FULL_SCALE).astype(np.uint16)

    return np.array([frame.score for frame in Scorer(detector).score(seen())])


def judged(found: Sequence[dict[str, Array]]) -> Judged:
    """Several members' judgements as one."""
    return Judged.together([Judged(tuple(map(str, one["kinds"])), one["normal"], one["defective"]) for one in found])


def fused(test: Sequence[Array], held_out: Sequence[Array], weights: Sequence[float]) -> Array:
    """The fusion's scores of the labelled images."""
    parts = zip(test, held_out, weights, strict=True)
    return np.sum([weight * scores / held.std() for scores, held, weight in parts if weight], axis=0)


def labelled(given: Lists, found: dict[str, Array]) -> list[bool | None]:
    """Whether each image is anomalous; None of those without a label."""
    table = read_labels(str(given.labels)).table.astype({"frame": object})
    told = {
        (row.uri, None if pd.isna(row.frame) else int(row.frame)): bool(row.anomalous)
        for row in table.itertuples(index=False)
    }
    pairs = zip(found["uri"].tolist(), found["frame"].tolist(), strict=True)
    return [told.get((uri, frame), told.get((uri, None))) for uri, frame in pairs]


def write_page() -> None:
    """One table of all cells."""
    cells = [json.loads(path.read_text()) for path in sorted((RESULTS / "fusion").glob("*.json"))]
    columns = list(dict.fromkeys(one for cell in cells for one in [*MEMBERS, *cell["auroc"]]))

    def line(found: dict[str, Any], part: str) -> str:
        values = [found[part].get(one) for one in columns]
        return " | ".join("–" if value is None else f"{value:.3f}" for value in values)

    rows, finds = [], []
    for found in cells:
        best = max(value for one, value in found["auroc"].items() if one in MEMBERS)
        last = list(found["weights"].values())[-1]
        out = ", ".join(one for one, weight in last.items() if not weight) or "none"
        key = f"| {found['data']} | {found['seed']} |"
        rows.append(
            f"{key} {found['n_normal']} + {found['n_anomalous']} | {line(found, 'auroc')} | "
            f"{found['auroc']['fused'] - best:+.3f} | {out} |"
        )
        finds.append(f"{key} {found['n_held_out']} | {line(found, 'judged')} |")
    text = [
        "# Fusion beside its members",
        "",
        "Image AUROC on labelled images of each set (normal + anomalous; of a larger set so many are drawn by a seed). "
        "Members are at their fast presets, linear at 64 px, padim, knn and mkd at 128 px; the bad one is an "
        "auto-encoder after one epoch. All of a seed hold out the same images. Members score what is resampled from "
        f"one decoding. {cells[0]['machine']['cpu']}, one thread, torch {cells[0]['versions']['torch']}.",
        "",
        f"| data | seed | images | {' | '.join(columns)} | fused over the best | left out of all |",
        "|" + "---|" * (5 + len(columns)),
        *rows,
        "",
        f"What they find of synthetic defects, by at most {FRAMES} of the images held out (mean AUROC over the kinds):",
        "",
        f"| data | seed | held out | {' | '.join(columns)} |",
        "|" + "---|" * (3 + len(columns)),
        *finds,
    ]
    (RESULTS / "fusion.md").write_text("\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SETS, help="repeatable; all by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--test", type=int, default=0, help="at most so many labelled images; 0: all")
    parser.add_argument("--members", default=",".join(MEMBERS))
    parser.add_argument("--work", type=Path, default=Path("build/fusion"), help="folder for lists, models and scores")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    plan = yaml.safe_load(PLAN.read_text())["data"]
    (RESULTS / "fusion").mkdir(parents=True, exist_ok=True)
    for name in asked.only or SETS:
        names = asked.members.split(",")
        found = cell(name, plan[name], names, asked.seed, asked.test, asked.work.resolve())
        path = RESULTS / "fusion" / f"{slug(name)}--seed-{asked.seed}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(path.name, found["auroc"], found["weights"], flush=True)
        write_page()


if __name__ == "__main__":
    main()
