"""The page that benchmarks.reduced writes: what reducing saves, what it does to scores and flags, and the rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imagecodecs

from ad_jobs.results.run import versions
from ad_jobs.scoring.thresholds import clopper_pearson
from benchmarks.decode import machine
from benchmarks.reduced_pictures import J2K_LOSSY_DB, JPEG_QUALITY, PHANTOM_PX, SETS

PAGE = Path(__file__).parent / "results" / "reduced.md"
RESULTS = PAGE.with_suffix("")
TIMES, SCANS = RESULTS / "times.json", RESULTS / "scan.json"
DETECTORS = ("linear", "padim", "pmad")
# The default of `fit` may be `reduced` where so few normals change their flag, shown on so many.
MOST_CHANGED, LEAST_NORMALS = 0.002, 1000

TOP = """\
# Decoding at the size that the detector sees

{machine}; Python {versions[python]}, imagecodecs {imagecodecs}. Written by `python -m benchmarks.reduced`.

## Milliseconds

From a file's bytes to the input, CPU time of one thread, least of {repeats}; a smooth field with grain, 12 bits, of
JPEG 8. Load average {load:.1f} while it was measured.

"""
SCORES = """
## Scores and flags

Each detector at its default size and preset scores every twin whole and reduced; `change` is that of the same twin, by
the standard deviation of what calibration's normals score. Fits and calibrations see whole native frames alone.
Normals are cross-fitted by group: each third is judged by a fit on another third, with the threshold of 1 % false
positives from the remaining one. Anomalous ones are judged by all three fits, and areas under the curve are their mean.
Numbers are of frames that were reduced: those that are too small for it, and native ones, are what they were.
`off` were flagged and no longer are, `on` the other way round.
J2K lossy and JPEG have {psnr} dB and quality {quality}; of phantoms, JPEG has the upper 8 of 12 bits.
`doubled`: enlarged by bicubic interpolation, which gives them less detail than pictures acquired at that size have, so
that reducing loses less. Phantoms are made at {phantom} px, with the grain of their scanners; boards are two-valued
pictures of 640 px.

"""
COLUMNS = ("pictures", "detector", "form", "reduced by", "mean change", "median", "99 %", "largest")
FLAGS = ("normals reduced", "flagged whole", "off", "on", "anomalous changed", "AUROC whole → reduced")


def write_page() -> None:
    """Write the page from what is stored, and print it."""
    timed = json.loads(TIMES.read_text())
    cells = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*--*.json"))]
    cells.sort(key=lambda cell: (cell["detector"], list(SETS).index(cell["set"])))
    top = TOP.format(machine=machine(), versions=versions(), imagecodecs=imagecodecs.__version__, **timed)
    scores = SCORES.format(psnr=J2K_LOSSY_DB, quality=JPEG_QUALITY, phantom=PHANTOM_PX)
    scans = _scans(json.loads(SCANS.read_text())) if SCANS.exists() else []
    lines = [*_times(timed), *scans, *scores.splitlines(), *_scores(cells), *_missing(cells), "", *_rule(cells)]
    PAGE.write_text(top + "\n".join(lines) + "\n")


def _times(timed: dict[str, Any]) -> list[str]:
    heads = [f"for {side} px ms" for side in timed["inputs_px"]]
    rows = [
        [f"{row['form']}, {row['size_px']} x {row['size_px']}", *_ms([row["whole_ms"], *row["reduced_ms"]])]
        for row in timed["rows"]
    ]
    return _table(("frame", "whole ms", *heads), rows, left=1)


def _scans(found: dict[str, Any]) -> list[str]:
    few, rows = found["few"], []
    for row in found["rows"]:
        whole = next(one for one in found["rows"] if one["side_px"] == row["side_px"] and one["decode"] == "full")
        rate, its_rate = (one["images"] / one["wall_s"] for one in (row, whole))
        cpu, its_cpu = (_cpu_of_one_more(one, few) for one in (row, whole))
        more, its_more = _more_a_second(row, few), _more_a_second(whole, few)
        # No look may have met one that lives for less than the time between two.
        decoder, its_decoder = (max(1e3 * one["decoders_s"] / one["images"], 0.1) for one in (row, whole))
        rows.append(
            [
                f"{row['images']} of {row['side_px']} x {row['side_px']}, {row['decode']}",
                *(f"{row[name]:.1f}" for name in ("wall_s", "cpu_s")),
                f"{rate:.2f} ({rate / its_rate:.1f})",
                f"{more:.2f} ({more / its_more:.1f})",
                f"{cpu:.1f} ({its_cpu / cpu:.1f})" if min(cpu, its_cpu) > 0 else f"{cpu:.1f}",
                f"{decoder:.1f} ({its_decoder / decoder:.1f})",
                f"{row['decode_ms']:.1f} ({whole['decode_ms'] / row['decode_ms']:.1f})",
            ]
        )
    heads = ("scan", "s", "CPU s", "images/s", "without the start", "CPU ms of one more")
    heads += ("decoders' CPU ms", "decode, clock ms")
    return [
        "",
        "## A scan",
        "",
        f"`retroscan scan` with {found['detector']} of {found['input_px']} px over lossless JPEG 2000 of 12 bits in a",
        "folder, on two CPUs (load average of the last minute "
        f"{found['load']:.0f}), by `python -m benchmarks.reduced_scan`.",
        "CPU is that of all processes of the scan; in brackets, how many times better than whole.",
        f"A scan of {few['images']} images took {few['wall_s']:.1f} s and {few['cpu_s']:.1f} CPU s, most of it Ray's "
        "start: one more image costs what is",
        "above that.",
        "",
        *_table(heads, rows, left=1),
    ]


def _more_a_second(row: dict[str, Any], few: dict[str, Any]) -> float:
    """Images a second in the time that the scan took more than one of few images."""
    return float((row["images"] - few["images"]) / (row["wall_s"] - few["wall_s"]))


def _cpu_of_one_more(row: dict[str, Any], few: dict[str, Any]) -> float:
    return 1e3 * (row["cpu_s"] - few["cpu_s"]) / (row["images"] - few["images"])


def _ms(values: list[float]) -> list[str]:
    return [f"{value:.1f}" for value in values]


def _scores(cells: list[dict[str, Any]]) -> list[str]:
    rows = []
    for cell in cells:
        for form, found in cell["forms"].items():
            if found["normals"]:
                rows.append([cell["set"], cell["detector"], form, *_row(found)])
    return _table((*COLUMNS, *FLAGS), rows, left=4)


def _missing(cells: list[dict[str, Any]]) -> list[str]:
    done = {(cell["detector"], cell["set"]) for cell in cells}
    left = {kind: [name for name in SETS if (kind, name) not in done] for kind in DETECTORS}
    told = "; ".join(f"{kind} on {', '.join(names)}" for kind, names in left.items() if names)
    return ["", f"Not measured: {told}."] if told else []


def _row(found: dict[str, Any]) -> list[str]:
    of = sum(found["factors"].values())
    factors = ", ".join(f"{factor} ({100 * n / of:.0f} %)" for factor, n in found["factors"].items())
    changes = [f"{found['mean']:+.3f}", *(f"{found[name]:.3f}" for name in ("median", "p99", "largest"))]
    flags = [str(found[name]) for name in ("normals", "normals_flagged", "off", "on")]
    anomalous = f"{found['anomalous_changed']} of {found['anomalous']}"
    return [factors, *changes, *flags, anomalous, " → ".join(f"{area:.4f}" for area in found["auroc"])]


def totals(cells: list[dict[str, Any]], detector: str) -> tuple[int, dict[str, tuple[int, int]]]:
    """Of a detector how many different normals were reduced in some form, and by form: normals changed, and judged."""
    pictures: dict[str, int] = {}
    forms: dict[str, tuple[int, int]] = {}
    for cell in cells:
        if cell["detector"] != detector:
            continue
        for form, found in cell["forms"].items():
            pictures[cell["of"]] = max(pictures.get(cell["of"], 0), found["normals"])
            changed, judged = forms.get(form, (0, 0))
            forms[form] = (changed + found["off"] + found["on"], judged + found["normals"])
    return sum(pictures.values()), {form: found for form, found in forms.items() if found[1]}


def _rule(cells: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## The default",
        "",
        f"`reduced` would be the default of `fit` where at most {MOST_CHANGED:.1%} of the normals change their flag in "
        "every form,",
        f"shown on {LEAST_NORMALS:,} different ones or more for each detector; 95 % intervals are Clopper-Pearson's.",
        "",
    ]
    rows, missed = [], []
    for detector in dict.fromkeys(cell["detector"] for cell in cells):
        pictures, forms = totals(cells, detector)
        for form, (changed, judged) in forms.items():
            low, high = clopper_pearson(changed, judged)
            share = f"{changed / judged:.2%} ({low:.2%} to {high:.2%})"
            rows.append([detector, form, str(pictures), str(judged), str(changed), share])
            if changed > MOST_CHANGED * judged:
                missed.append(f"{detector} on {form}: {changed / judged:.2%}")
        if pictures < LEAST_NORMALS:
            missed.append(f"{detector}: {pictures} different normals")
    lines += _table(("detector", "form", "different normals", "judged", "changed", "share"), rows, left=2)
    return [*lines, "", f"Not met: {'; '.join(missed)}." if missed else "Met."]


def _table(heads: tuple[str, ...], rows: list[list[str]], left: int) -> list[str]:
    rule = "|".join("---" if place < left else "---:" for place in range(len(heads)))
    return [f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)]
