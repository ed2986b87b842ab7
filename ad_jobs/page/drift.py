"""The report's section on drift: groups of the run beside the held-out normals, the farthest first."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from markupsafe import Markup

from ad_jobs.deciding import drift, proportion
from ad_jobs.deciding.normals import HeldOutNormals, held_out_normals
from ad_jobs.errors import UsageError
from ad_jobs.page import svg
from ad_jobs.results.described import described
from ad_jobs.results.score_table import ScoreTable

# What is read of the table.
COLUMNS = tuple(dict.fromkeys((*drift.COLUMNS, *proportion.COLUMNS)))
# Groups of a model that are drawn; drift.parquet has all of them.
_DRAWN = 12
# The height of a chart, in bars of the held-out normals.
_TIMES = 3
_WORDS = {"study_month": "month", "manufacturer": "maker", "model": "scanner", "site": "site"}
_HOW = {
    "higher": "scores higher",
    "lower": "scores lower",
    "wider": "is spread wider",
    "narrower": "is spread narrower",
}


class Section(NamedTuple):
    """What drift.html.j2 names, and drift.parquet."""

    context: dict[str, Any]
    file: bytes


def section(table: ScoreTable) -> Section:
    """The drift of a run, and what of its flags is out of proportion.

    Raises:
        JobError: a part of the table, or of the manifest, is missing or damaged.
    """
    record = table.record
    normals: dict[str, HeldOutNormals] = {}
    notes: dict[str, str] = {}
    changed = False
    for model in record.models:
        try:
            found = held_out_normals(table.uri, model)
        except UsageError as error:
            notes[model.model_id], changed = str(error), True
            continue
        if found is None:
            notes[model.model_id] = (
                "Its calibration, of an earlier version, kept no scores to compare with: calibrate the model again."
            )
        else:
            normals[model.model_id] = found
    rows = drift.drift(table, normals, described(table.uri, record, drift.OF_THE_MANIFEST))
    file = io.BytesIO()
    pq.write_table(rows, file, compression="zstd")
    groups = rows.to_pylist()
    models = [
        _model(model.kind, model.model_id, [row for row in groups if row["model_id"] == model.model_id], notes)
        for model in record.models
    ]
    warned = [] if changed else proportion.out_of_proportion(table, table.uri, record)
    context = {
        # Without groups, as in an archive of pictures, there is nothing to show.
        "drift": models if groups or changed else [],
        "drift_least": drift.LEAST_STUDIES,
        "drift_significance": drift.SIGNIFICANCE,
        "drift_effect": drift.EFFECT,
        "out_of_proportion": [one.text for one in warned],
    }
    return Section(context, file.getvalue())


def _model(kind: str, model_id: str, groups: list[dict[str, Any]], notes: dict[str, str]) -> dict[str, Any]:
    judged = [row for row in groups if row["p_holm"] is not None]
    return {
        "kind": kind,
        "model_id": model_id,
        "note": notes.get(model_id),
        "judged": len(judged),
        "drifted": sum(row["drifted"] is not None for row in judged),
        "small": len(groups) - len(judged),
        "drawn": [_drawn(row) for row in judged[:_DRAWN]],
    }


def _drawn(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "by": _WORDS[row["by"]],
        "value": row["value"],
        "how": _HOW.get(row["drifted"] or ""),
        "rows": row["rows"],
        "studies": row["studies"],
        "flagged": row["flagged"],
        "effect": row["effect"],
        "p": row["p_holm"],
        "chart": tenths(row["tenths"], f"{_WORDS[row['by']]} {row['value']}"),
    }


def tenths(shares: list[float], name: str, *, width: int = 200, height: int = 110) -> Markup:
    """The share of a group's rows in each tenth of the held-out normals, the line being what they have themselves.

    What lies above their median is not judged, and stands back; a share beyond the scale is cut off.
    """
    frame = svg.Frame(width, height, 34, 8, 6, 20)
    alike, count = 1 / len(shares), len(shares)
    top = _TIMES * alike
    parts = [svg.grid_y(frame, [(0.0, "0"), (alike / top, f"{alike:.0%}"), (1.0, f"{top:.0%}")])]
    for place, share in enumerate(shares):
        left, right = frame.x(place / count), frame.x((place + 1) / count)
        high = frame.y(min(share / top, 1.0))
        tip = f"{share:.1%} of the rows in tenth {place + 1} of the held-out normals"
        kind = "bar" if 2 * place < count else "bar aside"
        parts.append(svg.bar(kind, left + 0.5, high, right - left - 1, frame.y(0) - high, tip))
    parts += [
        svg.line(frame.x(0), frame.y(alike / top), frame.x(1), frame.y(alike / top), "threshold"),
        svg.grid_x(frame, [(0.5 / count, "low"), (1 - 0.5 / count, "high")]),
    ]
    title = f"Scores of {name} by tenths of the held-out normals, from low to high: "
    return svg.draw(frame, title + ", ".join(f"{share:.0%}" for share in shares), parts)
