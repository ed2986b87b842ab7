"""Quality of every detector on real images, through the command line: fit, scan, evaluate, one JSON a cell, one table.

    python -m benchmarks.quality [--config benchmarks/quality.yaml] [--only NAME] [--work FOLDER]

A finished cell (detector x data set x seed) is not run again. `variants` score the same fitted weights with other scoring
options, in this process, to compare them without another fit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ad_jobs.fetching import Source, fetch_all, prepare
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.metrics import image_ap, image_auroc
from ad_jobs.modelstore import open_model
from ad_jobs.results.run import machine, versions
from ad_jobs.scoring import Scorer
from models import registry

RESULTS = Path(__file__).parent / "results"
METRICS = ("image_auroc", "image_ap", "f1_max", "accuracy_zero_fn", "pixel_auroc", "aupro")


def retroscan(*arguments: str) -> dict[str, Any]:
    """One verb as a user runs it; its JSON result."""
    command = [sys.executable, "-m", "ad_jobs", *arguments, "--json"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"retroscan {' '.join(arguments)} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lists(data: dict[str, str], folder: Path) -> tuple[Path, Path]:
    """The split as files the verbs take: the training images with their groups, and the labels of the test images."""
    root = Path(data["root"]).resolve()
    with Path(data["split"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    with Path(data["labels"]).open(newline="") as file:
        groups = {row["image"]: row["group"] for row in csv.DictReader(file)}
    folder.mkdir(parents=True, exist_ok=True)
    train, test = folder / "train.csv", folder / "test.csv"
    for path, split in ((train, "train"), (test, "test")):
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "anomalous", "group"])
            for row in rows:
                if row["split"] == split:
                    table.writerow([root / row["image"], row["anomalous"], groups[row["image"]]])
    return train, test


def run_cell(cell: dict[str, Any], name: str, data: dict[str, str], seed: int, work: Path) -> dict[str, Any]:
    """Fit, scan and evaluate one cell through the command line."""
    folder = work / slug(cell["name"]) / name / f"seed-{seed}"
    train, test = lists(data, work / "lists" / name)
    model, run = folder / "model", folder / "run"
    settings = [word for key, value in cell.get("set", {}).items() for word in ("--set", f"{key}={value}")]
    record = retroscan(
        "fit", "--detector", cell["detector"], "--normal", str(train), "--out", str(model),
        "--size", str(cell["size"]), "--seed", str(seed), *settings,
    )  # fmt: skip
    start = time.perf_counter()
    scanned = retroscan("scan", str(test), "--model", str(model), "--out", str(run), "--heatmaps", "none")
    scan_s = time.perf_counter() - start
    evaluation = retroscan("evaluate", str(run), "--labels", str(test), "--bootstrap", "200")
    weights = open_model(str(model)).detector
    return {
        "cell": cell["name"], "data": name, "seed": seed, "config": record["config"], "model_id": record["model_id"],
        "n_fitted": record["data"]["n_fitted"], "n_test": scanned["counts"]["scored"],
        **{metric: evaluation[metric]["value"] for metric in METRICS},
        "variants": dict(variants(cell, model, test)),
        "fit_s": record.get("seconds"), "scan_s": round(scan_s, 1),
        "parameters_trained": sum(p.numel() for p in weights.parameters() if p.requires_grad),
        "peak_mib_children": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "machine": machine(), "versions": versions(), "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }  # fmt: skip


def variants(cell: dict[str, Any], model: Path, test: Path) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Image metrics and milliseconds an image of the fitted weights under other scoring options."""
    if not cell.get("variants"):
        return
    opened = open_model(str(model))
    with test.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([int(row["anomalous"]) for row in rows])
    sources = [Source(number, row["image"]) for number, row in enumerate(rows)]
    with GuardedDecoder() as decoder:
        pixels = [
            prepare(fetched, opened.policy, opened.limits, decoder).frames[0].pixels
            for fetched in fetch_all(sources, opened.limits.max_bytes)
        ]
    for name, options in cell["variants"].items():
        config = registry.configure(opened.kind, opened.record["config"] | options)
        detector = registry.create(opened.kind, config, opened.detector.spec, pretrained=False)
        detector.load_state_dict(opened.detector.state_dict())
        start = time.perf_counter()
        scores = np.array([frame.score for frame in Scorer(detector).score(pixels)])
        spent = 1e3 * (time.perf_counter() - start) / len(scores)
        found = {
            "image_auroc": image_auroc(scores, labels),
            "image_ap": image_ap(scores, labels),
            "score_ms": round(spent, 1),
        }
        yield name, found


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def write_table(folder: Path) -> None:
    """Markdown from the finished cells: mean and standard deviation over seeds."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not cells:
        return
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["cell"], cell["data"]), []).append(cell)
    first = cells[0]
    lines = [
        "# Quality",
        "",
        f"Mean and standard deviation over seeds. {first['machine']['cpu']}, {first['threads']} thread(s), torch "
        f"{first['versions']['torch']}. Times were taken on a machine shared with other work.",
        "",
    ]
    head = (
        "detector",
        "data",
        "seeds",
        "images to fit",
        "image AUROC",
        "image AP",
        "F1-max",
        "zero-FN accuracy",
    )
    rows = [
        (
            name, data, len(found), found[0]["n_fitted"], _spread(found, "image_auroc"), _spread(found, "image_ap"),
            _spread(found, "f1_max"), _spread(found, "accuracy_zero_fn"),
            f"{np.mean([c['fit_s'] or np.nan for c in found]):.0f}", f"{found[0]['parameters_trained']:,}",
        )
        for (name, data), found in sorted(groups.items())
    ]  # fmt: skip
    lines += _table((*head, "fit s", "trained parameters"), rows)
    lines += ["", "The same weights under other scoring options:", ""]
    compared = [
        (name, data, variant, _spread(cells, "image_auroc"), f"{np.mean([c['score_ms'] for c in cells]):.1f}")
        for (name, data), found in sorted(groups.items())
        for variant in found[0]["variants"]
        for cells in ([cell["variants"][variant] for cell in found],)
    ]
    lines += _table(("detector", "data", "variant", "image AUROC", "score ms"), compared)
    (RESULTS / "quality.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows)]


def _spread(cells: list[dict[str, Any]], key: str) -> str:
    values = [cell[key] for cell in cells if cell[key] is not None]
    return (
        f"{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}" if values else "-"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "quality.yaml")
    parser.add_argument(
        "--only", default="", help="run only cells whose name, data and seed contain this text"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/quality"), help="folder for lists, models and runs"
    )
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.config.read_text())
    folder = RESULTS / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    for cell in plan["cells"]:
        for seed in cell["seeds"]:
            for name in cell["data"]:
                path = folder / f"{slug(cell['name'])}--{name}--seed-{seed}.json"
                if path.exists() or arguments.only not in path.name:
                    continue
                result = run_cell(cell, name, plan["data"][name], seed, arguments.work.resolve())
                path.write_text(json.dumps(result, indent=1) + "\n")
                print(path.name, result["image_auroc"], flush=True)
                write_table(folder)
    write_table(folder)


if __name__ == "__main__":
    main()
