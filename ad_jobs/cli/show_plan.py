"""A plan for a reader: what will be scored, what will not and why, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.counting import counted

_UNTOLD = "not told"
_TITLES = {"transfer_syntax": "syntax"}


def plan_text(found: dict[str, Any]) -> str:
    """What `plan` found, a line for each thing to know."""
    lines = [*_selection(found["manifest"], found["headers"])]
    for facet, rows in found["facets"].items():
        lines += _facet(_TITLES.get(facet, facet), rows)
    lines += _expected(found)
    lines += _estimate(found["estimate"])
    return "\n".join(lines)


def _line(name: str, text: str) -> str:
    return f"{name:<13}{text}"


def _selection(manifest: dict[str, Any], headers: dict[str, Any]) -> Iterator[str]:
    since = f"{manifest['already']:,} already in {manifest['since']} + " if manifest["since"] else ""
    yield _line(
        "manifest",
        f"{manifest['listed']:,} = {manifest['objects']:,} to scan + {since}{manifest['not_selected']:,} not selected "
        f"+ {manifest['undecided']:,} undecided (--where is NULL)",
    )
    yield _line(
        "headers",
        f"all {headers['objects']:,} are known"
        if headers["exact"]
        else f"{headers['read']:,} of {headers['objects']:,} were read, drawn at random: counts are estimates, their "
        "95 % intervals in brackets",
    )


def _facet(name: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        value = _UNTOLD if row["value"] is None else str(row["value"])
        value = counted(row["others"], "other") if row["others"] else value
        value += f" {row['name']}" if row.get("name") else ""
        yield _line("" if number else name, f"{value}: {_count(row['objects'])}, {size_text(row['bytes'])}")


def _expected(found: dict[str, Any]) -> Iterator[str]:
    expected = found["expected"]
    yield _line("scored", f"{_count(expected['scored'])}, as far as headers tell")
    for status in ("failed", "skipped"):
        yield _line(status, _count(expected[status]))
    for row in expected["reasons"]:
        yield _line("", f"{row['reason']}: {_count(row['objects'])}")
    for model, reasons in zip(found["models"], expected["refused"], strict=True):
        for row in reasons:
            yield _line("", f"out_of_domain of {model['model_id']}: {row['reason']}: {_count(row['objects'])}")
    for row in found["undecodable"]:
        name = row["name"] or "a name that is not known"
        yield _line("no decoder", f"{row['transfer_syntax']} ({name}): {_count(row['objects'])}. See retroscan doctor.")


def _estimate(found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        yield _line("takes", "nothing: no object will be scored")
        return
    means, codes = found["means"], ", ".join(f"{code} {count}" for code, count in found["by_code"].items())
    yield _line(
        "timed",
        f"{counted(found['sample'], 'object')} here, at a load of {found['load']:g}: "
        f"{size_text(means['bytes'])} an object, "
        f"{means['fetch_ms']:.1f} ms to fetch, {means['decode_ms']:.1f} to decode, {means['score_ms']:.1f} to score, "
        f"{means['write_ms']:.1f} to write"
        + (f"; without a score, though their headers say nothing: {codes}" if codes else ""),
    )
    for one in found["clusters"]:
        gpus = f" and {counted(one['gpus'], 'GPU')}" if one["gpus"] else ""
        cost = "" if one["cost"] is None else f", cost {_range(one['cost'], '.2f')}"
        yield _line(
            "time",
            f"{counted(one['nodes'], 'node')} of {counted(one['cores'], 'CPU')}{gpus}: {_times(one['hours'])}{cost}; "
            f"{_range(one['images_per_s'], '.3g')} objects/s, by {one['bottleneck']}",
        )
    for name in ("table", "heatmap"):
        amount = found[f"{name}_bytes"]
        low, high = size_text(amount["low"]), size_text(amount["high"])
        yield _line(name if name == "table" else "heatmaps", f"{size_text(amount['value'])} [{low} to {high}]")


def _count(amount: dict[str, Any]) -> str:
    low, high = amount["low"], amount["high"]
    return f"{amount['value']:,}" + ("" if low == high else f" [{low:,} to {high:,}]")


def _range(amount: dict[str, float], digits: str) -> str:
    return f"{amount['value']:{digits}} [{amount['low']:{digits}} to {amount['high']:{digits}}]"


def _times(hours: dict[str, float]) -> str:
    return f"{time_text(hours['value'])} [{time_text(hours['low'])} to {time_text(hours['high'])}]"


def time_text(hours: float) -> str:
    """A time in hours, or in the smaller unit of which there are not a hundred.

    >>> time_text(0.01), time_text(0.5), time_text(31.25)
    ('36 s', '30 min', '31.2 h')
    """
    if hours < 100 / 3600:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 100 / 60 else f"{hours:.1f} h"


def size_text(count: float) -> str:
    """Bytes in the largest unit of which there is one.

    >>> size_text(2500), size_text(3 << 30)
    ('2.4 KiB', '3.0 GiB')
    """
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
