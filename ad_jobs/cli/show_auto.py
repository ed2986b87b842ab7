"""How `fit --detector auto` chose, or would choose, for people."""

from __future__ import annotations

from typing import Any

from cluster.counting import counted

# After the kinds of `retroscan detectors`.
ABOUT_AUTO = """auto: the best of several
  choose it for   not choosing: in the time of --budget (10m) it fits what learns from normal images alone, judges each
                  by synthetic defects in held-out ones, and keeps one; its model is of that kind"""


def auto_text(auto: dict[str, Any]) -> str:
    """The candidates, a row each with what it found by kind of defect, and the rule by which one was kept."""
    heads = ["", "fit s", "score ms", "found", *auto["kinds"], ""]
    rows = [
        [
            one["detector"],
            *(_number(one.get(name), spec) for name, spec in (("seconds", ".0f"), ("score_cpu_ms", ".1f"))),
            *(_number(value, ".3f") for value in (one.get("found"), *map(one.get("auroc", {}).get, auto["kinds"]))),
            one["why"],
        ]
        for one in auto["candidates"]
    ]
    widths = [max(len(row[place]) for row in (heads, *rows)) for place in range(len(heads))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        )
        for row in (heads, *rows)
    ]
    # Of fewer than are judged by, each has several.
    lines.append(
        f"AUROC on synthetic defects in {counted(auto['judged_on'], 'held-out image')}, "
        f"in {auto['seconds']:.0f} s where {auto['budget_s']:g} were given"
    )
    lines.append(f"{auto['kept']} is kept: {auto['rule']}")
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def auto_outlook_text(found: dict[str, Any]) -> str:
    """Which candidates would be tried, in order."""
    lines = [
        f"{one['detector']:<8}{one['height_px']}x{one['width_px']} px, {one['expected_s'] / 60:.1f} min expected"
        + ("" if one["starts"] else ": not within the budget")
        for one in found["candidates"]
    ]
    images = counted(found["normal"], "normal image")
    return "\n".join([f"{images}, {found['budget_s'] / 60:g} minutes, corrected by what the first ones take", *lines])
