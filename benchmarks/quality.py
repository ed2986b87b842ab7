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
from typing import Any

import numpy as np
import yaml

from ad_jobs.archive.fetching import Source, fetch_all, prepare
from ad_jobs.evaluation.image_metrics import image_ap, image_auroc
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import machine, versions
from ad_jobs.scoring.model_store import open_model
from ad_jobs.scoring.scorer import Scorer
from benchmarks.datasets import lists
from benchmarks.measuring import cost_of
from models import registry

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "detectors.md"
# A `table` of the YAML.
WITH_ANOMALOUS = "Detectors that learn from anomalous images"
# What lies between them in the page is written here.
FIGURES = ("<!-- figures -->", "<!-- /figures -->")
METRICS = ("image_auroc", "image_ap", "f1_max", "accuracy_max", "accuracy_zero_fn", "pixel_auroc", "aupro")


def retroscan(*arguments: str) -> tuple[dict[str, Any], float, int]:
    """One verb as a user runs it: its JSON result, its seconds, and the MiB of its largest process."""
    spent = cost_of([sys.executable, "-m", "ad_jobs", *arguments, "--json"])
    return json.loads(spent.output), spent.seconds, spent.peaks.largest


def run_cell(cell: dict[str, Any], name: str, data: dict[str, Any], seed: int, work: Path) -> dict[str, Any]:
    """Fit, scan and evaluate one cell through the command line."""
    folder = work / slug(cell["name"]) / slug(name) / f"seed-{seed}"
    given = lists(data, work / "lists" / slug(name) / (f"seed-{seed}" if "anomalous" in data else "all"), seed)
    model, run = folder / "model", folder / "run"
    settings = [word for key, value in cell.get("set", {}).items() for word in ("--set", f"{key}={_text(value)}")]
    if registry.entry(cell["detector"]).needs_anomalous:
        assert given.anomalous is not None, f"{cell['detector']} needs anomalous images, {name} names none to fit on"
        settings += ["--anomalous", given.anomalous]
    record, fit_s, fit_mib = retroscan(
        "fit",
        "--detector",
        cell["detector"],
        "--normal",
        given.normal,
        "--out",
        str(model),
        "--size",
        str(cell["size"]),
        "--seed",
        str(seed),
        *settings,
    )
    keep = "all" if given.masks else "none"
    scanned, scan_s, scan_mib = retroscan(
        "scan", given.archive, "--model", str(model), "--out", str(run), "--heatmaps", keep
    )
    evaluation, _, _ = retroscan("evaluate", str(run), "--labels", str(given.labels), "--bootstrap", "200")
    weights = open_model(str(model)).detector
    score_ms = read_scores(str(run), columns=["score_ms", "status"]).dropna()["score_ms"]
    at = evaluation["at_threshold"]
    return {
        "cell": cell["name"],
        "detector": cell["detector"],
        "data": name,
        "seed": seed,
        "size": cell["size"],
        "table": cell.get("table", "main"),
        "config": record["config"],
        "model_id": record["model_id"],
        "n_fitted": record["data"]["n_fitted"],
        "n_anomalous_fitted": record["data"]["n_anomalous"],
        "n_scored": scanned["counts"]["scored"],
        **{metric: evaluation[metric]["value"] for metric in METRICS},
        "at_threshold": {rate: at[rate] for rate in ("fpr", "fnr")},
        "n_normal": evaluation["n_normal"],
        "n_anomalous": evaluation["n_anomalous"],
        "variants": {} if given.masks else dict(variants(cell, model, given.labels)),
        "fit_s": round(record.get("seconds") or fit_s, 1),
        "scan_s": round(scan_s, 1),
        "images_per_s": round(1e3 / float(score_ms.mean()), 1),  # of the detector alone, as the table has it
        "parameters": sum(p.numel() for p in weights.parameters()),
        "parameters_trained": sum(p.numel() for p in weights.parameters() if p.requires_grad),
        "fit_peak_mib": fit_mib,
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
    """Markdown from the finished cells: means and deviations over seeds, one table for each `table` of the YAML."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not cells:
        return
    tables: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for cell in cells:
        groups = tables.setdefault(cell.get("table", "main"), {})
        groups.setdefault((cell["cell"], cell["data"]), []).append(cell)
    machines = sorted(
        {f"{c['machine']['cpu']} with {c['threads']} thread(s), torch {c['versions']['torch']}" for c in cells}
    )
    lines = [
        "# Quality",
        "",
        f"Mean and standard deviation over seeds. Machines: {'; '.join(machines)}. Times were taken beside other work; "
        "memory is that of the largest process, without what it shares. Oracle metrics (F1-max, accuracy-max, zero-FN "
        "accuracy) pick their threshold on the labels they are judged by.",
    ]
    for name, groups in sorted(tables.items(), key=lambda item: (item[0] != "main", item[0])):
        lines += ["", *([f"## {name}", ""] if name != "main" else []), *_quality_table(groups)]
    compared = [
        (cell, data, variant, _spread(scored, "image_auroc"), _mean(scored, "score_ms"))
        for groups in tables.values()
        for (cell, data), found in sorted(groups.items())
        for variant in found[0]["variants"]
        for scored in ([one["variants"][variant] for one in found if variant in one["variants"]],)
    ]
    if compared:
        lines += ["", "## The same weights under other scoring options", ""]
        lines += _table(("detector", "data", "variant", "image AUROC", "score ms"), compared)
    (RESULTS / "quality.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    before, _, rest = PAGE.read_text().partition(FIGURES[0])
    _, _, after = rest.partition(FIGURES[1])
    shown = [
        table for name in ("main", WITH_ANOMALOUS) if name in tables for table in ("", *_short_table(tables[name]))
    ]
    PAGE.write_text("\n".join([before + FIGURES[0], *shown[1:], FIGURES[1]]) + after)


def _short_table(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """What a reader of the page wants to know first."""
    metrics = ("image_auroc", "image_ap", "accuracy_max", "pixel_auroc", "aupro")
    head = (
        "detector",
        "data",
        "seeds",
        "image AUROC",
        "image AP",
        "accuracy-max",
        "pixel AUROC",
        "AUPRO",
        "fit s",
        "images/s",
    )
    rows = [
        (
            name,
            data,
            len(found),
            *(_spread(found, metric) for metric in metrics),
            _mean(found, "fit_s", ".0f"),
            _mean(found, "images_per_s", ".0f"),
        )
        for (name, data), found in sorted(groups.items())
    ]
    return _table(head, rows)


def _quality_table(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    head = (
        "detector",
        "data",
        "seeds",
        "image AUROC",
        "image AP",
        "F1-max",
        "accuracy-max",
        "zero-FN accuracy",
        "pixel AUROC",
        "AUPRO",
        "fitted on",
        "fit s",
        "images/s",
        "parameters",
        "fit MiB",
    )
    rows = [
        (
            name,
            data,
            len(found),
            *(_spread(found, metric) for metric in METRICS),
            _fitted_on(found[0]),
            _mean(found, "fit_s", ".0f"),
            _mean(found, "images_per_s"),
            _mean(found, "parameters", ",.0f"),
            _mean(found, "fit_peak_mib", ".0f"),
        )
        for (name, data), found in sorted(groups.items())
    ]
    return _table(head, rows)


def _fitted_on(cell: dict[str, Any]) -> str:
    anomalous = cell.get("n_anomalous_fitted")
    return f"{cell['n_fitted']} + {anomalous}" if anomalous else str(cell["n_fitted"])


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows)]


def _spread(cells: list[dict[str, Any]], key: str) -> str:
    values = [cell[key] for cell in cells if cell.get(key) is not None]
    if not values:
        return "–"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _mean(cells: list[dict[str, Any]], key: str, form: str = ".1f") -> str:
    values = [cell[key] for cell in cells if cell.get(key) is not None]
    return format(np.mean(values), form) if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "quality.yaml")
    parser.add_argument("--only", default="", help="run only cells whose name, data and seed contain this text")
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="folder for lists, models and runs")
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.config.read_text())
    folder = RESULTS / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    for cell in plan["cells"]:
        for seed in cell["seeds"]:
            for name in cell["data"]:
                path = folder / f"{slug(cell['name'])}--{slug(name)}--seed-{seed}.json"
                if path.exists() or arguments.only not in path.name:
                    continue
                result = run_cell(cell, name, plan["data"][name], seed, arguments.work.resolve())
                path.write_text(json.dumps(result, indent=1) + "\n")
                print(path.name, result["image_auroc"], flush=True)
                write_table(folder)
    write_table(folder)


if __name__ == "__main__":
    main()
