"""Quality of every detector on real images, through the command line: fit, scan, evaluate, one JSON a cell, one table.

    python -m benchmarks.quality [--config benchmarks/quality.yaml] [--only NAME] [--work FOLDER]

A finished cell (detector x data set x seed) is not run again.
`variants` score the same fitted weights with other scoring options, in this process, without another fit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ad_jobs.evaluation.image_metrics import image_ap, image_auroc
from ad_jobs.evaluation.labels import join, read_labels
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import machine, versions
from ad_jobs.schema import SCORED
from ad_jobs.scoring.model_store import open_model
from ad_jobs.scoring.scorer import Scorer
from ad_jobs.specs import AUTO
from benchmarks.datasets import Lists, lists
from benchmarks.held_out import decoded, sensitivities, split
from benchmarks.measuring import cost_of
from benchmarks.quality_page import METRICS, RESULTS, write_pages
from models import registry

Cells = dict[str, dict[str, Any]]


def retroscan(*arguments: str) -> tuple[dict[str, Any], float, int]:
    """One verb as a user runs it: its JSON result, its seconds, and the MiB of its largest process."""
    spent = cost_of([sys.executable, "-m", "ad_jobs", *arguments, "--json"])
    return json.loads(spent.output), spent.seconds, spent.peaks.largest


class Fit(NamedTuple):
    """A model as the command line made it; `data` is what its record, or its members', says of the images."""

    record: dict[str, Any]
    data: dict[str, Any]
    seconds: float
    peak_mib: int


def fitted(cell: dict[str, Any], given: Lists, seed: int, model: Path) -> Fit:
    """`retroscan fit` of a cell."""
    settings = [word for key, value in cell.get("set", {}).items() for word in ("--set", f"{key}={_text(value)}")]
    chosen = cell["detector"] == AUTO
    if not chosen and registry.entry(cell["detector"]).needs_anomalous:
        assert given.anomalous is not None, f"{cell['name']} needs anomalous images to fit on"
        settings += ["--anomalous", given.anomalous]
    for name in ("size", "tile", "overlap", "budget"):
        settings += [f"--{name}", str(cell[name])] if name in cell else []
    record, seconds, mib = retroscan(
        *("fit", "--detector", cell["detector"], "--normal", given.normal, "--out", str(model)),
        *("--seed", str(seed), *settings),
    )
    if not chosen:
        return Fit(record, record["data"], record.get("seconds") or seconds, mib)
    # What is kept may be a fusion, which was fitted on nothing itself.
    tried = next(one for one in record[AUTO]["candidates"] if "model_id" in one)
    return Fit(record, open_model(tried["folder"]).record["data"], record[AUTO]["seconds"], mib)


def fused(members: list[dict[str, Any]], given: Lists, seed: int, folders: list[Path], model: Path) -> Fit:
    """`retroscan fuse` of the models of other cells, which are fitted where they are not yet."""
    fits = [fitted(cell, given, seed, folder) for cell, folder in zip(members, folders, strict=True)]
    record, seconds, mib = retroscan("fuse", *map(str, folders), "--out", str(model))
    return Fit(
        record, fits[0].data, seconds + sum(fit.seconds for fit in fits), max(mib, *(fit.peak_mib for fit in fits))
    )


def run_cell(
    cell: dict[str, Any], cells: Cells, name: str, data: dict[str, Any], seed: int, work: Path
) -> dict[str, Any]:
    """Fit, scan and evaluate one cell through the command line; `cells` are all, by name."""

    def folder_of(one: dict[str, Any]) -> Path:
        return work / slug(one["name"]) / slug(name) / f"seed-{seed}"

    model, run = folder_of(cell) / "model", folder_of(cell) / "run"
    given = lists(data, work / "lists" / slug(name) / (f"seed-{seed}" if "anomalous" in data else "all"), seed)
    if "members" in cell:
        members = [cells[member] for member in cell["members"]]
        made = fused(members, given, seed, [folder_of(member) / "model" for member in members], model)
    else:
        made = fitted(cell, given, seed, model)
    record = made.record
    keep = "all" if given.masks else "none"
    scanned, scan_s, scan_mib = retroscan(
        "scan", given.archive, "--model", str(model), "--out", str(run), "--heatmaps", keep
    )
    evaluation, _, _ = retroscan("evaluate", str(run), "--labels", str(given.labels), "--bootstrap", "200")
    opened = open_model(str(model))
    weights = opened.detector
    rows = read_scores(str(run), columns=["uri", "frame", "status", "score", "flagged", "heatmap", "score_ms"])
    judged = join(read_labels(str(given.labels)), rows, rows["uri"].nunique()).table
    judged = judged[judged["status"] == SCORED]
    _, normals = split(decoded(given.normal, opened.policy, opened.limits), seed)
    assert len(normals) == made.data["n_held_out"]
    at = evaluation["at_threshold"]
    return {
        "cell": cell["name"],
        "detector": cell["detector"],
        "data": name,
        "seed": seed,
        "size": cell.get("size"),
        **({name: cell[name] for name in ("tile", "overlap")} if "tile" in cell else {}),
        "table": cell.get("table", "main"),
        "config": record.get("config", record.get("fused")),
        **({AUTO: record[AUTO]} if AUTO in record else {}),
        "model_id": record["model_id"],
        "n_fitted": made.data["n_fitted"],
        "n_anomalous_fitted": made.data["n_anomalous"],
        "n_scored": scanned["counts"]["scored"],
        **{metric: evaluation[metric]["value"] for metric in METRICS},
        "at_threshold": {rate: at[rate] for rate in ("fpr", "fnr")},
        "at_rates": sensitivities(
            (
                frame.score
                for frame in Scorer(weights, tiles=opened.policy.tiles).score(image.pixels for image in normals)
            ),
            judged["score"].to_numpy(np.float64),
            judged["anomalous"].to_numpy(bool),
        ),
        "n_normal": evaluation["n_normal"],
        "n_anomalous": evaluation["n_anomalous"],
        "variants": {} if given.masks else dict(variants(cell, model, given.labels)),
        "fit_s": round(made.seconds, 1),
        "scan_s": round(scan_s, 1),
        # Of the detector alone, as the run's table has it.
        "images_per_s": round(1e3 / float(rows["score_ms"].mean()), 1),
        "parameters": sum(p.numel() for p in weights.parameters()),
        "parameters_trained": sum(p.numel() for p in weights.parameters() if p.requires_grad),
        "fit_peak_mib": made.peak_mib,
        "scan_peak_mib": scan_mib,
        "machine": machine(),
        "versions": versions(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def variants(cell: dict[str, Any], model: Path, test: Path) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Image metrics and milliseconds an image of the fitted weights under other scoring options."""
    if not cell.get("variants"):
        return
    opened = open_model(str(model))
    with test.open(newline="") as file:
        labels = np.array([int(row["anomalous"]) for row in csv.DictReader(file)])
    pixels = [image.pixels for image in decoded(str(test), opened.policy, opened.limits)]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "quality.yaml")
    parser.add_argument("--only", default="", help="run only cells whose name, data and seed contain this text")
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="folder for lists, models and runs")
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.config.read_text())
    folder = RESULTS / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    cells = {cell["name"]: cell for cell in reversed(plan["cells"])}
    for cell in plan["cells"]:
        for seed in cell["seeds"]:
            for name in cell["data"]:
                path = folder / f"{slug(cell['name'])}--{slug(name)}--seed-{seed}.json"
                if path.exists() or arguments.only not in path.name:
                    continue
                result = run_cell(cell, cells, name, plan["data"][name], seed, arguments.work.resolve())
                path.write_text(json.dumps(result, indent=1) + "\n")
                print(path.name, result["image_auroc"], flush=True)
                write_pages()
    write_pages()


if __name__ == "__main__":
    main()
