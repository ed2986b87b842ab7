"""What a fusion finds beside its members, and beside them with a bad one among them, on the sets of quality.yaml.

    python -m benchmarks.fusion [--only NAME] [--seed 0] [--test 0] [--members linear,padim] [--work FOLDER]

One JSON a data set and seed, below results/fusion, and one page of all. What is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from ad_jobs.evaluation.image_metrics import image_auroc
from ad_jobs.evaluation.labels import read_labels
from ad_jobs.fuse import fuse
from ad_jobs.results.run import machine, versions
from ad_jobs.scoring.model_store import open_fitted
from ad_jobs.scoring.scorer import Scorer
from benchmarks.datasets import Lists, lists
from benchmarks.fusion_members import BAD, MEMBERS, member
from benchmarks.held_out import Decoded, decoded
from benchmarks.quality import slug

PLAN = Path(__file__).parent / "quality.yaml"
RESULTS = Path(__file__).parent / "results"
SETS = ("br35h", "elpv", "deeppcb", "phantom", "br35h, turned")
# Frames that times are taken of.
TIMED = 32


def cell(name: str, data: dict[str, Any], names: Sequence[str], seed: int, most: int, work: Path) -> dict[str, Any]:
    """Members fitted, fused without and with the bad one, and judged by real labels."""
    given = lists(data, work / "lists" / slug(name), seed)
    folder = work / "models" / slug(name) / f"seed-{seed}"
    places = {one: member(one, given.normal, seed, folder / one) for one in names}
    good = [one for one in names if one != BAD]
    found: dict[str, Any] = {"data": name, "seed": seed, "machine": machine(), "versions": versions()}
    start = time.perf_counter()
    fused = fuse(model=[places[one] for one in good], out=str(folder / "fused"))
    found["fuse_s"] = round(time.perf_counter() - start, 1)
    models = {**places, "fused": str(folder / "fused")}
    if BAD in names:
        spoilt = fuse(model=[places[one] for one in names], out=str(folder / "fused-with-bad"))
        models["fused, with a bad one"] = str(folder / "fused-with-bad")
        found["spoilt"] = weights(names, spoilt)
    found["weights"] = weights(good, fused)
    found["judged"] = {one: row["found"] for one, row in zip(good, fused["fused"]["members"], strict=True)}
    found["judged"]["fused"] = fused["fused"]["found"]
    for one, place in models.items():
        model, detector = open_fitted(place)
        images, labels = labelled(given, model.policy, model.limits, most)
        scores = [frame.score for frame in Scorer(detector).score(image.pixels for image in images)]
        found.setdefault("auroc", {})[one] = image_auroc(np.array(scores), labels)
        found.setdefault("images_per_s", {})[one] = rate(Scorer(detector), images[:TIMED])
        found["n_normal"], found["n_anomalous"] = int((~labels).sum()), int(labels.sum())
    return found


def weights(names: Sequence[str], record: dict[str, Any]) -> dict[str, float]:
    """What each member weighs."""
    return {one: row["weight"] for one, row in zip(names, record["fused"]["members"], strict=True)}


def rate(scorer: Scorer, images: Sequence[Decoded]) -> float:
    """Images a second of one CPU, once the scorer is warm."""
    list(scorer.score(image.pixels for image in images))
    start = time.process_time()
    list(scorer.score(image.pixels for image in images))
    return round(len(images) / (time.process_time() - start), 1)


def labelled(given: Lists, policy: Any, limits: Any, most: int) -> tuple[list[Decoded], NDArray[np.bool_]]:
    """The frames that have a label, at most so many, drawn by a seed, and whether each is anomalous."""
    table = read_labels(str(given.labels)).table.astype({"frame": object})
    told = {
        (row.uri, None if pd.isna(row.frame) else int(row.frame)): bool(row.anomalous)
        for row in table.itertuples(index=False)
    }
    known = [
        (image, label)
        for image in decoded(given.archive, policy, limits)
        if (label := told.get((image.uri, image.frame), told.get((image.uri, None)))) is not None
    ]
    if most and len(known) > most:
        known = [known[n] for n in sorted(np.random.default_rng(0).permutation(len(known))[:most])]
    return [image for image, _ in known], np.array([label for _, label in known])


def write_page() -> None:
    """One table of all cells."""
    cells = [json.loads(path.read_text()) for path in sorted((RESULTS / "fusion").glob("*.json"))]
    columns = list(dict.fromkeys(one for cell in cells for one in cell["auroc"]))
    rows = []
    for found in cells:
        best = max(value for one, value in found["auroc"].items() if one in MEMBERS)
        values = [f"{found['auroc'][one]:.3f}" if one in found["auroc"] else "–" for one in columns]
        joined = ", ".join(f"{one} {weight:.2f}" for one, weight in found["weights"].items() if weight)
        rows.append(
            f"| {found['data']} | {found['seed']} | {found['n_normal']} + {found['n_anomalous']} | "
            f"{' | '.join(values)} | {found['auroc']['fused'] - best:+.3f} | {joined} |"
        )
    speeds = [
        f"| {found['data']} | {found['seed']} | "
        + " | ".join(str(found["images_per_s"].get(one, "–")) for one in columns)
        + f" | {found['fuse_s']} |"
        for found in cells
    ]
    of = cells[0]["machine"]
    text = [
        "# Fusion beside its members",
        "",
        "Image AUROC on the labelled images of each set (normal + anomalous; where a set has more than were asked for, "
        "drawn by a seed), by the members' own models and by `retroscan fuse` of them. Members at their fast presets: "
        "linear at 64 px, padim, knn and mkd at 128 px; the bad one is an auto-encoder after one epoch. All of a seed "
        f"hold out the same images. {of['cpu']}, one thread, torch {cells[0]['versions']['torch']}.",
        "",
        f"| data | seed | images | {' | '.join(columns)} | fused over the best | who joined |",
        "|" + "---|" * (5 + len(columns)),
        *rows,
        "",
        "Images a second of one CPU's time that scores, and the seconds of `fuse`, taken beside other work:",
        "",
        f"| data | seed | {' | '.join(columns)} | fuse s |",
        "|" + "---|" * (3 + len(columns)),
        *speeds,
    ]
    (RESULTS / "fusion.md").write_text("\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SETS, help="repeatable; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", type=int, default=0, help="at most so many labelled images; 0: all")
    parser.add_argument("--members", default=",".join(MEMBERS))
    parser.add_argument("--work", type=Path, default=Path("build/fusion"), help="folder for lists and models")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    plan = yaml.safe_load(PLAN.read_text())["data"]
    (RESULTS / "fusion").mkdir(parents=True, exist_ok=True)
    for name in asked.only or SETS:
        path = RESULTS / "fusion" / f"{slug(name)}--seed-{asked.seed}.json"
        if path.exists():
            continue
        names = asked.members.split(",")
        found = cell(name, plan[name], names, asked.seed, asked.test, asked.work.resolve())
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(path.name, found["auroc"], found["weights"], flush=True)
        write_page()
    write_page()


if __name__ == "__main__":
    main()
