"""What the cells of benchmarks/quality.py and the floors of benchmarks/floors.py say, as pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "detectors.md", ROOT / "README.md"
# A `table` of the YAML.
WITH_ANOMALOUS = "Detectors that learn from anomalous images"
# What lies between them in the page is written here.
FIGURES = ("<!-- figures -->", "<!-- /figures -->")
# Of false positives among held-out normals, as the cells name them.
RATES = ("0.01", "0.05")
METRICS = ("image_auroc", "image_ap", "f1_max", "accuracy_max", "accuracy_zero_fn", "pixel_auroc", "aupro")

# By heading, a kind of data and what is shown of it: what a stranger asks first, and who chooses.
AT_FIRST = {
    "brains": ("br35h", "image_auroc"),
    "solar cells": ("elpv", "image_auroc"),
    "phantoms": ("phantom", "image_auroc"),
    "phantoms, pixels": ("phantom", "pixel_auroc"),
}
BY_DATA = AT_FIRST | {
    "brains, turned": ("br35h, turned", "image_auroc"),
    "phantoms, turned": ("phantom, turned", "image_auroc"),
    "boards": ("deeppcb", "image_auroc"),
}

# Kinds that others are held against, and not what a user begins with.
YARDSTICKS = ("autoencoder", "ssm_residual")

Cell = dict[str, Any]
# The cells of all seeds by name and data.
Groups = dict[tuple[str, str], list[Cell]]


def write_pages() -> None:
    """benchmarks/results/quality.md, and the figures in docs/detectors.md, from the finished cells and floors."""
    cells, floors = _read("quality"), _read("floors")
    tables: dict[str, Groups] = {}
    for cell in cells:
        groups = tables.setdefault(cell.get("table", "main"), {})
        groups.setdefault((cell["cell"], cell["data"]), []).append(cell)
    machines = sorted(
        {f"{c['machine']['cpu']} with {c['threads']} thread(s), torch {c['versions']['torch']}" for c in cells}
    )
    lines = [
        "# Quality",
        "",
        f"Mean and standard deviation over seeds. Machines: {'; '.join(machines)}. "
        "Times are medians, taken beside other work; memory is that of the largest process, without what it shares. "
        "Oracle metrics (F1-max, accuracy-max, zero-FN accuracy) pick their threshold on the labels they are judged "
        "by. Sensitivity is the share of anomalous images above a threshold that 1 % or 5 % of held-out normals "
        "exceed, with the mean of its exact 95 % intervals, and in brackets the share of judged normals above it.",
        *_floor_tables(floors),
    ]
    for name, groups in sorted(tables.items(), key=lambda item: (item[0] != "main", item[0])):
        lines += ["", *([f"## {name}", ""] if name != "main" else ["## Detectors", ""]), *_quality_table(groups)]
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
    supervised = ["", *_short_table(tables[WITH_ANOMALOUS])] if WITH_ANOMALOUS in tables else []
    _put(PAGE, [*_overview(tables["main"], BY_DATA), *supervised])
    _put(README, _overview(tables["main"], AT_FIRST, at_first=True))


def _put(page: Path, lines: list[str]) -> None:
    """Write the figures of a page anew."""
    before, _, rest = page.read_text().partition(FIGURES[0])
    _, _, after = rest.partition(FIGURES[1])
    page.write_text("\n".join([before + FIGURES[0], *lines, FIGURES[1]]) + after)


def _overview(groups: Groups, shown: dict[str, tuple[str, str]], *, at_first: bool = False) -> list[str]:
    """A line a detector: of each kind of data, a metric.

    With `at_first` only of those that were measured on all of it, without YARDSTICKS.
    """
    rows = []
    for name in sorted({name for name, _ in groups}):
        found = {data: cells for (cell, data), cells in groups.items() if cell == name}
        if at_first and not all(data in found for data, _ in shown.values()):
            continue
        # Earlier cells do not name their detector.
        if at_first and any(one.get("detector") in YARDSTICKS for cells in found.values() for one in cells):
            continue
        fit_s = _median([one for cells in found.values() for one in cells], "fit_s", ".0f")
        rows.append((name, *(_spread(found.get(data, []), metric) for data, metric in shown.values()), fit_s))
    return _table(("detector", *shown, "fit s"), rows)


def _read(folder: str) -> list[Cell]:
    return [json.loads(path.read_text()) for path in sorted((RESULTS / folder).glob("*.json"))]


def _floor_tables(floors: list[dict[str, Any]]) -> list[str]:
    """What needs no detector: one table of all data sets."""
    if not floors:
        return []
    rows = [
        (floor, found["data"], len(seeds), _spread(seeds, "image_auroc"), *(_sensitivity(seeds, at) for at in RATES))
        for found in floors
        for floor, seeds in found["floors"].items()
    ]
    head = ("floor", "data", "seeds", "image AUROC", *(f"sensitivity at {100 * float(at):g} %" for at in RATES))
    return [
        "",
        "## Floors",
        "",
        "What needs no look at the image is given in the direction that tells more: where it is far from 0.5, the set "
        "can be told by more than its pictures. The others are distances from normal images in 32 x 32 grey pixels.",
        "",
        *_table(head, rows),
    ]


def _sensitivity(cells: list[Cell], at: str) -> str:
    """Over seeds: mean sensitivity, mean interval, and in brackets the mean share of judged normals above."""
    found = [cell["at_rates"][at] for cell in cells if "at_rates" in cell]
    if not found:
        return "–"
    value, low, high = (np.mean([one["sensitivity"][key] for one in found]) for key in ("value", "low", "high"))
    fpr = np.mean([one["fpr"]["value"] for one in found])
    return f"{value:.3f}, {low:.3f} to {high:.3f} ({fpr:.3f})"


def _short_table(groups: Groups) -> list[str]:
    """What a reader of the page wants to know first."""
    before, after = ("image_auroc", "image_ap"), ("accuracy_max", "pixel_auroc", "aupro")
    head = (
        "detector",
        "data",
        "seeds",
        "image AUROC",
        "image AP",
        "sensitivity at 5 %",
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
            *(_spread(found, metric) for metric in before),
            _sensitivity(found, "0.05"),
            *(_spread(found, metric) for metric in after),
            _median(found, "fit_s", ".0f"),
            _median(found, "images_per_s", ".0f"),
        )
        for (name, data), found in sorted(groups.items())
    ]
    return _table(head, rows)


def _quality_table(groups: Groups) -> list[str]:
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
        "sensitivity at 1 %",
        "sensitivity at 5 %",
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
            *(_sensitivity(found, at) for at in RATES),
            _fitted_on(found[0]),
            _median(found, "fit_s", ".0f"),
            _median(found, "images_per_s"),
            _mean(found, "parameters", ",.0f"),
            _mean(found, "fit_peak_mib", ".0f"),
        )
        for (name, data), found in sorted(groups.items())
    ]
    return _table(head, rows)


def _fitted_on(cell: Cell) -> str:
    anomalous = cell.get("n_anomalous_fitted")
    return f"{cell['n_fitted']} + {anomalous}" if anomalous else str(cell["n_fitted"])


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows)]


def spread(values: Sequence[float] | NDArray[np.float64]) -> str:
    """Mean and standard deviation over seeds, of one the value alone; a dash of none."""
    if not len(values):
        return "–"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _spread(cells: list[Cell], key: str) -> str:
    return spread([cell[key] for cell in cells if cell.get(key) is not None])


def _mean(cells: list[Cell], key: str, form: str = ".1f") -> str:
    values = [cell[key] for cell in cells if cell.get(key) is not None]
    return format(np.mean(values), form) if values else "–"


def _median(cells: list[Cell], key: str, form: str = ".1f") -> str:
    """Of times: one that was taken on a busy machine does not move it."""
    values = [cell[key] for cell in cells if cell.get(key) is not None]
    return format(np.median(values), form) if values else "–"
