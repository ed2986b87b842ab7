"""How well `fit --detector auto` chooses: candidates judged by synthetic defects, beside what they find of real ones.

    python -m benchmarks.auto [--only NAME] [--seed 1] [--kinds linear,padim,knn] [--test 240] [--work FOLDER]

Candidates are fitted, judged and held against labels as benchmarks/fusion.py does with its members, and kept in the
same work folder; one JSON a data set and seed, and one page of all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import kendalltau

from ad_jobs.evaluation.image_metrics import image_auroc
from ad_jobs.fitting.choosing import RULE, Option, chosen, fusion_of
from ad_jobs.fitting.cost import score_cpu_ms
from ad_jobs.fitting.fusion import chosen as joining
from ad_jobs.results.run import machine, versions
from ad_jobs.scoring.model_store import open_fitted
from benchmarks.datasets import lists
from benchmarks.fusion import FRAMES, PLAN, RESULTS, Array, fused, judged, labelled, scored
from benchmarks.fusion_members import MEMBERS, member
from benchmarks.quality import slug

# Beside those that are fused there.
MEMBERS |= {kind: (kind, {}) for kind in ("pmad", "fyd", "ssm")}
KINDS = ("linear", "padim", "knn")
SETS = ("br35h", "elpv", "phantom", "deeppcb", "br35h, turned")
DIGITS = (1, 5, 8)
FOLDER = RESULTS / "auto"


def sets(mnist: str) -> dict[str, dict[str, Any]]:
    """The data sets by name; digits of MNIST with 500 training images, and up to 1,000 test images of either kind."""
    plan = yaml.safe_load(PLAN.read_text())["data"]
    digits = {"kind": "digits", "root": mnist, "normal": 500, "tested": 1000}
    return {name: plan[name] for name in SETS} | {f"digit {digit}": {**digits, "digit": digit} for digit in DIGITS}


def cell(name: str, data: dict[str, Any], kinds: list[str], seed: int, most: int, work: Path) -> dict[str, Any]:
    """Candidates fitted and judged, the one that auto keeps, and what each finds of real anomalies."""
    given = lists(data, work / "lists" / slug(name), seed)
    found: dict[str, dict[str, Array]] = {}
    costs = {}
    for kind in kinds:
        folder = work / "models" / slug(name) / f"seed-{seed}" / kind
        path = work / "arrays" / f"{slug(name)}-{seed}-{kind}.npz"
        _, detector = open_fitted(member(kind, given.normal, seed, folder))
        costs[kind] = score_cpu_ms(detector)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **scored(detector, given, seed, most))
        found[kind] = dict(np.load(path))
    labels = labelled(given, found[kinds[0]])
    known = np.array([label is not None for label in labels])
    truth = np.array([bool(label) for label in labels])[known]
    options = [Option(kind, judged([found[kind]]), costs[kind]) for kind in kinds]
    real = {kind: image_auroc(found[kind]["test"][known], truth) for kind in kinds}
    if (fusion := fusion_of(options)) is not None:
        weights = joining(judged([found[kind] for kind in kinds]))
        parts = [[found[kind][part] for kind in kinds] for part in ("test", "held")]
        real[fusion.name] = image_auroc(fused(*parts, weights)[known], truth)
        options.append(fusion)
    return {
        "data": name,
        "seed": seed,
        "machine": machine(),
        "versions": versions(),
        "n_held_out": len(found[kinds[0]]["held"]),
        "n_normal": int((~truth).sum()),
        "n_anomalous": int(truth.sum()),
        "kept": chosen(options).name,
        "without_fusion": chosen([one for one in options if not one.members]).name,
        "candidates": {
            one.name: {
                "real": real[one.name],
                "found": one.found,
                "auroc": dict(zip(one.judged.kinds, one.judged.auroc()[:, 0].tolist(), strict=True)),
                "score_cpu_ms": round(one.score_cpu_ms, 1),
            }
            for one in options
        },
    }


def write_page() -> None:
    """benchmarks/results/auto.md from the stored cells."""
    cells = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    rows, details = [], []
    for one in cells:
        tried = one["candidates"]
        single = {name: told for name, told in tried.items() if not name.startswith("fused-")}
        best = max(single, key=lambda name: single[name]["real"])
        loss, alone = (single[best]["real"] - tried[one[kept]]["real"] for kept in ("kept", "without_fusion"))
        columns = [[told[what] for told in single.values()] for what in ("real", "found")]
        tau = float(kendalltau(*columns).statistic)
        rows.append(
            f"| {one['data']} | {one['seed']} | "
            f"{one['n_normal']} + {one['n_anomalous']} | {one['kept']} | {tried[one['kept']]['real']:.3f} | {best} | "
            f"{single[best]['real']:.3f} | {loss:+.3f} | {one['without_fusion']} | {alone:+.3f} | {tau:.2f} |"
        )
        details += [
            f"| {one['data']} | {one['seed']} | {name} | {told['real']:.3f} | {told['found']:.3f} | "
            + " | ".join(f"{value:.3f}" for value in told["auroc"].values())
            + f" | {told['score_cpu_ms']:.1f} |"
            for name, told in tried.items()
        ]
    kinds = list(next(iter(cells[0]["candidates"].values()))["auroc"])
    text = [
        "# How well auto chooses",
        "",
        f"What is kept is, {RULE}.",
        "Real: image AUROC on so many labelled images (normal + anomalous); synthetic: the mean AUROC over the kinds "
        f"of defects in at most {FRAMES} of the images held out.",
        "Loss: what the best candidate finds of real anomalies more than what is kept, and than what would be kept "
        "were there no fusion. Tau: Kendall's rank agreement of candidates by real and by synthetic ones.",
        "Sizes and strengths of the defects were looked at on br35h and elpv, and that a fusion is preferred was "
        "decided with the fusions of all sets but the digits in sight: these alone are an untouched test.",
        f"{cells[0]['machine']['cpu']}, one thread, beside other work.",
        "",
        "| data | seed | images | kept | real | best alone | real | loss | kept without fusion | loss | tau |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "## Candidates",
        "",
        f"| data | seed | detector | real | synthetic | {' | '.join(kinds)} | score ms |",
        "|" + "---|" * (6 + len(kinds)),
        *details,
    ]
    (RESULTS / "auto.md").write_text("\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the data set of this name")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--test", type=int, default=240, help="labelled images judged, 0 for all")
    parser.add_argument("--mnist", default="../shared/data/mnist/mnist.npz")
    parser.add_argument("--work", type=Path, default=Path("build/fusion"), help="folder of lists, models and scores")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name, data in sets(arguments.mnist).items():
        if arguments.only not in ("", name):
            continue
        asked = arguments.kinds.split(","), arguments.seed, arguments.test, arguments.work.resolve()
        found = cell(name, data, *asked)
        (FOLDER / f"{slug(name)}--seed-{arguments.seed}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(name, found["kept"], flush=True)
        write_page()


if __name__ == "__main__":
    main()
