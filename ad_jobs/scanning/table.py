"""Scored objects as one part of the score table: rows, heatmap shards, and the file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ad_jobs.archive.fetching import detail_of_scored, status_of
from ad_jobs.errors import ErrorCode
from ad_jobs.images.geometry import Geometry
from ad_jobs.results.heatmaps import FULL_SCALE, encode_png, member_name, write_shard
from ad_jobs.results.parts import SCORES_FOLDER, part_name
from ad_jobs.scanning.judgement import ModelUse
from ad_jobs.schema import FAILED, SCORES
from cluster import storage


def write_part(scored: pa.Table, run_uri: str, run_id: str, chapter: int, models: Sequence[ModelUse]) -> pa.Table:
    """Write SCORED_OBJECTS rows as one part of the score table: what it holds, in one row (objects, failed, engines).

    The heatmaps go before the part: a row never refers to what is not there. The part is written whole or not at all,
    and under a name that follows from its objects: a task that is run again overwrites its own.
    """
    rows = finish_rows(scored, run_uri, run_id, chapter, models)
    file = io.BytesIO()
    pq.write_table(rows, file, compression="zstd")
    name = part_name(chapter, map(str, scored["object_id"].to_pylist()))
    uri = storage.join(run_uri, SCORES_FOLDER, f"{name}.parquet")
    storage.patiently(lambda: storage.write_bytes(uri, file.getvalue()))
    failed = rows.filter(pc.equal(rows["status"], FAILED))["object_id"]
    engines = sorted(pc.unique(pc.list_flatten(scored["engines"])).to_pylist())
    told = {"objects": [scored.num_rows], "failed": [len(failed.unique())]}
    return pa.table({**told, "engines": pa.array([engines], pa.list_(pa.string()))})


def finish_rows(scored: pa.Table, run_uri: str, run_id: str, chapter: int, models: Sequence[ModelUse]) -> pa.Table:
    """SCORES rows of SCORED_OBJECTS rows, one a frame and model; heatmaps are packed and written below `run_uri`."""
    frames = [
        [_frame_rows(row, number, use) for number, use in enumerate(models)]
        for row in scored.select(_FRAME_INPUT).to_pylist()
    ]
    references = write_shard(_members(scored, frames, models), run_uri, chapter)
    columns = [row for of_object in frames for rows in of_object for row in rows]
    for row in columns:
        row["heatmap"] = references.get(_member(row, models))
    whole = scored.select([name for name in scored.column_names if name in SCORES.names])
    counts = [sum(map(len, of_object)) for of_object in frames]
    repeated = whole.take(pa.array(np.repeat(np.arange(scored.num_rows), counts)))
    constant = {"run_id": run_id}
    arrays = []
    for field in SCORES:
        if field.name in _PER_FRAME:
            arrays.append(pa.array([row[field.name] for row in columns], field.type))
        elif field.name in constant:
            arrays.append(pa.array([constant[field.name]] * len(columns), field.type))
        else:
            arrays.append(repeated[field.name].cast(field.type))
    return pa.table(arrays, schema=SCORES)


_FRAME_INPUT = [
    *("object_id", "remarks", "error_code", "error_detail", "refused", "frames", "constant", "scores", "score_ms")
]
_PER_FRAME = {
    "frame",
    "status",
    "error_code",
    "error_detail",
    "score",
    "flagged",
    "heatmap",
    "score_ms",
    "model_id",
    "threshold",
}


def _frame_rows(row: dict[str, Any], model: int, use: ModelUse) -> list[dict[str, Any]]:
    """The columns that differ between an object's frames and models; one row for an object without a score."""
    judgement = use.judgement
    common = {"object_id": row["object_id"], "model_id": judgement.model_id, "threshold": judgement.threshold}
    code, detail = row["error_code"], row["error_detail"]
    if row["refused"] and row["refused"][model] is not None:
        code, detail = str(ErrorCode.OUT_OF_DOMAIN), row["refused"][model]
    if code is not None:
        return [
            {
                **common,
                "frame": 0,
                "status": status_of(code),
                "error_code": code,
                "error_detail": detail,
                "score": None,
                "flagged": None,
                "score_ms": None,
            }
        ]
    rows = []
    for frame, constant, score, score_ms in zip(
        row["frames"], row["constant"], row["scores"][model], row["score_ms"][model], strict=True
    ):
        code = None if score is not None else str(ErrorCode.NON_FINITE_SCORE)
        remarks = detail_of_scored(constant, row["remarks"][use.policy])
        detail = remarks if score is not None else "the detector's answer is not finite"
        flagged = judgement.flags(score) if score is not None else None
        rows.append(
            {
                **common,
                "frame": frame,
                "status": status_of(code),
                "error_code": code,
                "error_detail": detail,
                "score": score,
                "flagged": flagged,
                "score_ms": score_ms,
            }
        )
    return rows


def _member(row: dict[str, Any], models: Sequence[ModelUse]) -> str:
    return member_name(row["object_id"], row["frame"], row["model_id"] if len(models) > 1 else None)


def _members(
    scored: pa.Table, frames: list[list[list[dict[str, Any]]]], models: Sequence[ModelUse]
) -> Iterator[tuple[str, bytes]]:
    """The PNG of every kept heatmap, by its name in the shard."""
    for of_object, heatmaps, geometries in zip(frames, scored["heatmaps"], scored["geometry"], strict=True):
        for rows, use, of_model in zip(of_object, models, heatmaps, strict=True):
            for row, heatmap, geometry in zip(rows, of_model, geometries[use.policy], strict=False):
                if heatmap.is_valid:
                    values = np.frombuffer(heatmap.as_buffer(), np.uint16)
                    placed = Geometry(**json.loads(geometry.as_py()))
                    unit = values.reshape(placed.height_px, placed.width_px) / FULL_SCALE
                    yield _member(row, models), encode_png(unit, placed, use.judgement.heatmap_anchor)
