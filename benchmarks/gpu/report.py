"""The page of a run of benchmarks.gpu.run: tables of what was measured, and what was cut or failed.

python -m benchmarks.gpu.report RESULTS.jsonl [--page benchmarks/results/gpu.md]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.gpu import tables
from benchmarks.gpu.tables import Row

PAGE = Path(__file__).parents[1] / "results" / "gpu.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    lines = page([json.loads(line) for line in given.results.read_text().splitlines()])
    given.page.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def page(results: Sequence[Row]) -> list[str]:
    """The lines of gpu.md; a section whose stage found nothing is left out."""
    sections: tuple[tuple[str, Callable[[list[Row]], Iterable[str]]], ...] = (
        ("agreement", tables.agreement),
        ("padim", tables.padim),
        ("throughput", tables.throughput),
        ("compile", tables.compiled),
        ("paper", tables.paper),
    )
    lines = ["# On a GPU", "", "`python -m benchmarks.gpu.run`, on a pack made by `python -m benchmarks.gpu.pack`."]
    lines += [text for row in _measured(results, "machine") for text in ("", _machine(row))]
    for stage, section in sections:
        if rows := _measured(results, stage):
            lines += ["", *section(rows)]
    if lost := list(_lost(results)):
        lines += ["", "## Not measured", "", *lost]
    return lines


def _measured(results: Sequence[Row], stage: str) -> list[Row]:
    return [row for row in results if row["stage"] == stage and "error" not in row and "skipped" not in row]


def _machine(row: Row) -> str:
    card, versions = row["card"], row["versions"]
    where = "no card: on the CPU"
    if card is not None:
        where = (
            f"{card['name']} ({card['memory_gib']:.0f} GiB), driver {card['driver']}, CUDA {card['cuda']}, "
            f"cuDNN {card['cudnn']}"
        )
    names = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    text = f"{where}; {row['cores']} cores; Python {row['python']}, {names}. {row['seconds']:.0f} s in all."
    return f"{text} A trial with tiny images: its figures mean nothing." if row["small"] else text


def _lost(results: Sequence[Row]) -> Iterator[str]:
    """What failed, was left out for want of time, or never came to its end, one line each; equal ones once."""
    lines = []
    if any(row["stage"] == "throughput" and "skipped" in row for row in results):
        lines.append("* throughput: where a dash stands, no time was left, or what is below stood in the way")
    for row in results:
        if "error" in row or ("skipped" in row and row["stage"] != "throughput"):
            about = [str(row[name]) for name in ("kind", "data", "precision", "way") if name in row]
            about += [f"{row[name]} {unit}" for name, unit in (("size_px", "px"), ("batch", "a batch")) if name in row]
            why = f"left out, {row['skipped']}" if "skipped" in row else row["error"].split("\n")[0]
            lines.append(f"* {row['stage']}{': ' if about else ''}{', '.join(about)}: {why}")
    ended = {row["of"] for row in results if row["stage"] == "end"}
    begun = dict.fromkeys(row["stage"] for row in results if row["stage"] not in ("machine", "end"))
    # Of the stage as a whole, not of one of its measurements.
    failed = {row["stage"] for row in results if "error" in row and not {"kind", "data"} & row.keys()}
    lines += [f"* {stage}: the run was cut off in it" for stage in begun if stage not in ended | failed]
    yield from dict.fromkeys(lines)


if __name__ == "__main__":
    main()
