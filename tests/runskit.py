"""Several small runs of one archive, for the tests of what reads more than one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import runkit
from runkit import MODEL, scored, write_part

from ad_jobs.results.run import ManifestRef, RunRecord, count_table, describe_parts, part_uris, write_record


def made(folder: Path, day: int, rows: list[dict[str, Any]], **changes: Any) -> str:
    """The run of a day, whose objects are numbered as they come."""
    run_id, uris = f"{day:012x}", list(dict.fromkeys(row["uri"] for row in rows))
    when = runkit.MOMENT.replace(day=day)
    numbered = [row | {"object_id": uris.index(row["uri"]), "run_id": run_id, "scored_at": when} for row in rows]
    # In two parts, out of order.
    write_part(folder, numbered[1::2], "part-0")
    write_part(folder, numbered[::2], "part-1")
    models = sorted({row["model_id"] for row in rows})
    counted = count_table(part_uris(str(folder)), objects=len(uris), run_id=run_id, model_ids=models)
    assert counted.complaints == []
    base = runkit.record(folder, 0)
    known = {
        "run_id": run_id,
        "started_at": when,
        "models": [base.models[0].model_copy(update={"model_id": model}) for model in models],
        "manifest": ManifestRef(uri="/m", digest="00", objects=len(uris)),
        "counts": counted.counts,
        "parts": describe_parts(str(folder)),
    }
    write_record(str(folder), RunRecord.model_validate(base.model_copy(update=known | changes).model_dump()))
    return str(folder)


def image(name: str, frame: int = 0, model_id: str = MODEL, **values: Any) -> dict[str, Any]:
    """A row of an object of this name."""
    return scored(0, frame, model_id, uri=f"/a/{name}", **values)
