"""Made runs of many groups: scores, held-out normals and a record, without a scan."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import runkit
from numpy.typing import NDArray

from ad_jobs.results.run import held_out_copy, write_record
from ad_jobs.schema import SCORES
from ad_jobs.scoring.held_out import Scored, to_parquet
from cluster import storage

THRESHOLD = 2.4


def rows(scores: NDArray[Any], start: int = 0, *, frames: int = 1, **values: Any) -> pa.Table:
    """A row of the table for each score; `frames` of them are a study."""
    count = len(scores)
    given = {
        "object_id": np.arange(start, start + count),
        "uri": [f"/a/{start + place}" for place in range(count)],
        "score": scores.astype(np.float32),
        "flagged": scores.astype(np.float32) > np.float32(THRESHOLD),
        "study_uid": [f"1.2.{start}.{place // frames}" for place in range(count)],
    }
    same = {"frame": 0, "status": "scored", "threshold": THRESHOLD, "model_id": runkit.MODEL, "run_id": runkit.RUN_ID}
    same |= {"transfer_syntax": "1.2.840.10008.1.2.1", **values}
    columns = [
        pa.array(given[field.name], field.type)
        if field.name in given
        else pa.repeat(pa.scalar(same.get(field.name), field.type), count)
        for field in SCORES
    ]
    return pa.Table.from_arrays(columns, schema=SCORES)


def finished(
    folder: Path,
    made: Sequence[pa.Table],
    normals: NDArray[Any] | None,
    *,
    frames: int = 1,
    manifest: tuple[str, str] | None = None,
) -> str:
    """A finished run of these rows, judged by a calibration that kept `normals`; `frames` of these are a group.

    `manifest` is where one lies and its digest.
    """
    table = pa.concat_tables(made)
    (folder / "scores").mkdir(parents=True)
    pq.write_table(table, folder / "scores" / "part-0.parquet")
    record = runkit.record(folder, table.num_rows)
    model = record.models[0].model_copy(update={"threshold": THRESHOLD, "policy": _POLICY})
    if normals is not None:
        body = to_parquet(
            Scored(f"{place:064x}", 0, str(place // frames), False, float(score))
            for place, score in enumerate(normals.astype(np.float32))
        )
        storage.write_bytes(held_out_copy(str(folder), model.model_id), body)
        model = model.model_copy(update={"held_out_sha256": hashlib.sha256(body).hexdigest()})
    changed: dict[str, Any] = {"models": [model]}
    if manifest is not None:
        changed["manifest"] = record.manifest.model_copy(update={"uri": manifest[0], "digest": manifest[1]})
    write_record(str(folder), record.model_copy(update=changed))
    return str(folder)


_POLICY = {"channels": 1, "height_px": 32, "width_px": 32}
