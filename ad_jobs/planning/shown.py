"""A census as plain values: what occurs, what a scan will say of it, and for what there is no decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ad_jobs.archive.fetching import status_of
from ad_jobs.images.dicom import decodable, syntax_name
from ad_jobs.planning.census import Census
from ad_jobs.planning.estimate import Share

# Values of a facet, and reasons, that are told one by one; the others are told in one.
MOST = 10


def facets(found: Census) -> dict[str, list[dict[str, Any]]]:
    """Of each facet the most frequent values, and the rest: objects, and bytes as far as they are listed.

    Bytes are those of the objects that were looked at, in proportion. `value` is null where a header does not
    tell, and `others` the number of values that one row sums up, 0 where it is of one.
    """
    return {name: _values(found, name) for name in found.facets}


def _values(found: Census, facet: str) -> list[dict[str, Any]]:
    counts = {value: entry[0] for value, entry in found.facets[facet].items()}
    shown, rest = _most(counts)
    rows = [{"value": value, "others": 0, **_row(found, facet, [value])} for value in shown]
    if rest:
        rows.append({"value": None, "others": len(rest), **_row(found, facet, rest)})
    if facet == "transfer_syntax":
        for row in rows:
            row["name"] = syntax_name(row["value"]) if isinstance(row["value"], str) else None
    return rows


def _row(found: Census, facet: str, values: Iterable[object]) -> dict[str, Any]:
    entries = [found.facets[facet][value] for value in values]
    objects, size = (sum(entry[place] for entry in entries) for place in (0, 1))
    return {"objects": _amount(found, objects), "bytes": round(size * found.objects / found.read)}


def _most(counts: dict[Any, int]) -> tuple[list[Any], list[Any]]:
    """The most frequent values, and the others; of equal ones the first by name."""
    ordered = sorted(counts, key=lambda value: (-counts[value], str(value)))
    return (ordered, []) if len(ordered) <= MOST else (ordered[:MOST], ordered[MOST:])


def _amount(found: Census, count: int) -> Any:
    return Share(count, found.read, found.objects).amount


def expected(found: Census) -> dict[str, Any]:
    """How many objects will be scored, fail and be skipped, by code, and why, as far as headers tell.

    An object that one model takes and another does not counts as skipped, as it does in a run's counts.
    """
    statuses: Counter[str] = Counter()
    for code, count in found.outcomes.items():
        statuses[status_of(code)] += count
    return {
        **{status: _amount(found, statuses[status]) for status in ("scored", "failed", "skipped")},
        "by_code": {code.value: _amount(found, n) for code, n in sorted(found.outcomes.items(), key=str) if code},
        "reasons": _reasons(found, {f"{code}: {detail}": n for (code, detail), n in found.reasons.items()}),
        "refused": [_reasons(found, reasons) for reasons in found.refused],
    }


def _reasons(found: Census, counts: dict[Any, int]) -> list[dict[str, Any]]:
    shown, rest = _most(counts)
    rows = [{"reason": reason, "objects": _amount(found, counts[reason])} for reason in shown]
    if rest:
        others = sum(counts[reason] for reason in rest)
        rows.append({"reason": f"{len(rest)} other reasons", "objects": _amount(found, others)})
    return rows


def undecodable(found: Census) -> list[dict[str, Any]]:
    """The transfer syntaxes that occur and that no installed decoder reads."""
    return [
        {"transfer_syntax": syntax, "name": syntax_name(syntax), "objects": _amount(found, entry[0])}
        for syntax, entry in sorted(found.facets["transfer_syntax"].items(), key=str)
        if isinstance(syntax, str) and not decodable(syntax)
    ]
