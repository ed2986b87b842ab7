"""Do decisions keep their word: realised rates over random draws of the held-out normals, on real images.

    python -m benchmarks.decisions [--draws 500] [--work FOLDER]

A detector is fitted and the test images are scanned, through the command line.
Of the test's normal images a random half, by whole groups, then stands for the held-out ones, and the rest with all
abnormal images is decided; over many draws.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from ad_jobs.deciding.likeness import likeness
from ad_jobs.deciding.p_values import Reference, q_values
from ad_jobs.evaluation.labels import join, read_labels
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import machine, versions
from ad_jobs.schema import SCORED
from benchmarks.datasets import lists
from benchmarks.measuring import cost_of

PAGE = Path(__file__).parent / "results" / "decisions.md"
SETS = ("br35h", "elpv")
DETECTORS = {"linear": 64, "padim": 128}
FPR, FDR = (0.01, 0.02, 0.05, 0.1), (0.05, 0.1, 0.2)


class Draw(NamedTuple):
    """What one draw of the held-out normals gave."""

    rule: str
    asked: float
    # Of the normals that were flagged; of the flagged that were normal; of the abnormal that were flagged.
    fpr: float
    fdr: float
    found: float
    doubtful: bool


def judged(detector: str, size: int, name: str, work: Path) -> pd.DataFrame:
    """The scored test images: score, anomalous, group."""
    data = yaml.safe_load((Path(__file__).parent / "quality.yaml").read_text())["data"][name]
    given = lists(data, work / "lists", 0)
    model, run = work / detector / "model", work / detector / "run"
    _retroscan("fit", "--detector", detector, "--normal", given.normal, "--out", model, "--size", size)
    _retroscan("scan", given.archive, "--model", model, "--out", run, "--heatmaps", "none")
    rows = read_scores(str(run), columns=["uri", "frame", "status", "score", "flagged", "heatmap"])
    table = join(read_labels(str(given.labels)), rows, rows["uri"].nunique()).table
    return table[table["status"] == SCORED].reset_index(drop=True)


def _retroscan(*words: object) -> None:
    cost_of([sys.executable, "-m", "ad_jobs", *map(str, words), "--json"])


def draws(table: pd.DataFrame, count: int) -> Iterator[Draw]:
    """Every rule's outcome of each draw."""
    anomalous = table["anomalous"].to_numpy(bool)
    scores = table["score"].to_numpy(np.float32)
    group = table["group"].fillna(table["uri"]).to_numpy(str)
    names = np.unique(group[~anomalous])
    for seed in range(count):
        rng = np.random.default_rng(seed)
        taken = np.isin(group, rng.permutation(names)[: len(names) // 2]) & ~anomalous
        # Abnormal images of a group whose normals are held out are left out: groups are not split.
        left = ~np.isin(group, group[taken])
        reference = Reference(scores[taken])
        levels = reference.levels(scores[left])
        counts = np.bincount(levels, minlength=reference.n + 1)
        p, q = reference.p(), q_values(counts)
        doubtful = likeness(counts, reference).doubtful is not None
        for rule, values, rates in (("--max-fpr", p, FPR), ("--fdr", q, FDR)):
            for asked in rates:
                yield Draw(rule, asked, *_rates(values[levels] <= asked, anomalous[left]), doubtful)


def _rates(flagged: NDArray[np.bool_], anomalous: NDArray[np.bool_]) -> tuple[float, float, float]:
    return (
        float(flagged[~anomalous].mean()),
        float((flagged & ~anomalous).sum() / max(flagged.sum(), 1)),
        float(flagged[anomalous].mean()),
    )


def page(found: dict[str, tuple[pd.DataFrame, pd.DataFrame]], count: int) -> str:
    lines = [
        "# Do decisions keep their word?",
        "",
        f"`python -m benchmarks.decisions`: {count} draws; in each a random half of the test's normal images, by whole",
        "groups, is held out, and the other half with all abnormal images is decided.",
        "Means over draws, with their standard errors; `found` is the share of abnormal images that are flagged.",
        "What is promised is a mean: one draw may lie above it, as the last column shows.",
        "Whole groups are drawn, whose frames are alike: means may lie beside the promise by more than their errors.",
        "Likeness doubts a run of which less than half seems normal, as it is of these sets.",
        "",
    ]
    for name, (table, rows) in found.items():
        normal, abnormal = int((~table["anomalous"].astype(bool)).sum()), int(table["anomalous"].astype(bool).sum())
        lines += [
            f"## {name}",
            "",
            f"{normal} normal and {abnormal} abnormal test images.",
            f"Likeness was in doubt in {rows['doubtful'].mean():.1%} of draws.",
            "",
            "| rule | realised FPR | realised FDR | found | draws above what was asked for |",
            "|---|---|---|---|---|",
        ]
        for (rule, asked), some in rows.groupby(["rule", "asked"], sort=False):
            kept = some["fpr" if rule == "--max-fpr" else "fdr"]
            lines.append(
                f"| `{rule} {asked:g}` | {_mean(some['fpr'])} | {_mean(some['fdr'])} | {some['found'].mean():.3f} | "
                f"{(kept > asked).mean():.0%} |"
            )
        lines.append("")
    told = {"machine": machine(), "versions": {k: versions()[k] for k in ("retroscan", "torch", "numpy", "scipy")}}
    return "\n".join([*lines, "```", json.dumps(told, indent=1), "```", ""])


def _mean(values: pd.Series[float]) -> str:
    return f"{values.mean():.4f} ± {values.std() / np.sqrt(len(values)):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in SETS:
            for detector, size in DETECTORS.items():
                table = judged(detector, size, name, (arguments.work or Path(scratch)) / name)
                rows = pd.DataFrame(draws(table, arguments.draws), columns=Draw._fields)
                found[f"{name}, {detector}"] = table, rows
                print(rows.groupby(["rule", "asked"], sort=False)[["fpr", "fdr", "found"]].mean(), flush=True)
    PAGE.write_text(page(found, arguments.draws))


if __name__ == "__main__":
    main()
