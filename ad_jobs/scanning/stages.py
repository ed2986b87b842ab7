"""The stages of a scan as functions from Arrow table to Arrow table, one row an object until the last.

    manifest rows -> prepare_objects -> pixels -> score_objects -> scores per frame -> finish_rows -> score
    table

An object's frames travel in its one row, so that they are never split over two parts of the table. Pixels
travel as uint16 at the detector's input size: half of float32, and all of a 16-bit image.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.archive.fetching import (
    CONSTANT_FRAME,
    ETAG_CHANGED,
    FAILED,
    Decoder,
    Prepared,
    Source,
    fetch_all,
    prepare_each,
    status_of,
)
from ad_jobs.errors import ErrorCode
from ad_jobs.images.decode import Frame
from ad_jobs.images.geometry import Geometry
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.heatmaps import FULL_SCALE, KeepPolicy, encode_png, keep, member_name, on_scale, pack
from ad_jobs.results.parts import SCORES_FOLDER, part_name
from ad_jobs.schema import HEADER, SCORES
from cluster import storage

if TYPE_CHECKING:  # fetching workers import this module and need no torch
    from ad_jobs.scoring.scorer import FrameScore, Scorer

IdentifierMode = Literal["plain", "hashed", "none"]

MANIFEST_COLUMNS = ["object_id", "uri", "bytes", "etag"]

_OBJECT = [
    ("object_id", pa.int64()),
    ("uri", pa.string()),
    ("changed", pa.bool_()),
    ("error_code", pa.string()),
    ("error_detail", pa.string()),
    ("content_sha256", pa.string()),
    ("bytes", pa.int64()),
    *HEADER,
    ("fetch_ms", pa.float32()),
    ("decode_ms", pa.float32()),
    ("frames", pa.list_(pa.int32())),
    ("geometry", pa.list_(pa.list_(pa.string()))),  # of each policy: JSON of each frame
    ("constant", pa.list_(pa.bool_())),
]
PREPARED = pa.schema(
    [
        *_OBJECT,
        ("channels", pa.list_(pa.list_(pa.int8()))),  # of each policy: of each frame
        ("pixels", pa.list_(pa.large_binary())),  # of each policy: the frames' uint16 [c, h, w], end to end
    ]
)
SCORED_OBJECTS = pa.schema(
    [
        *_OBJECT,
        # Of each model: of each frame.
        ("scores", pa.list_(pa.list_(pa.float32()))),  # null where not finite
        ("score_ms", pa.list_(pa.list_(pa.float32()))),
        ("heatmaps", pa.list_(pa.list_(pa.large_binary()))),  # uint16 [h, w] on its scale, null where not kept
        ("scored_at", pa.timestamp("us", tz="UTC")),
    ]
)


class Identifiers(NamedTuple):
    """How the table names studies, series and instances; `hashed` also hides URIs, which may hold names."""

    mode: IdentifierMode = "plain"
    key: bytes = b""

    def uid(self, uid: str | None) -> str | None:
        """A UID as the table shows it."""
        if uid is None or self.mode == "none":
            return None
        return self._hash(uid) if self.mode == "hashed" else uid

    def uri(self, uri: str) -> str:
        """A URI as the table shows it."""
        return self._hash(uri) if self.mode == "hashed" else uri

    def _hash(self, text: str) -> str:
        return "hmac:" + hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()[:32]


class Judgement(NamedTuple):
    """What makes rows of a model's raw numbers: its threshold, heatmap scale, and which heatmaps are kept."""

    model_id: str
    threshold: float
    heatmap_low: float
    heatmap_high: float
    heatmaps: KeepPolicy

    def flags(self, score: float) -> bool:
        """Whether a score is above the threshold, both as the table stores them: in float32."""
        return bool(np.float32(score) > np.float32(self.threshold))

    def unit(self, heatmap: NDArray[np.float32]) -> NDArray[np.float32]:
        """A raw heatmap on the run's global scale, float32 in [0, 1]."""
        return on_scale(heatmap, self.heatmap_low, self.heatmap_high)


class ModelUse(NamedTuple):
    """One of the scan's models: how its numbers are judged, and which of the scan's policies its pixels follow."""

    judgement: Judgement
    policy: int


def prepare_objects(
    manifest: pa.Table, policies: Sequence[PixelPolicy], limits: Limits, decoder: Decoder, identifiers: Identifiers
) -> pa.Table:
    """PREPARED rows of manifest rows: each object fetched and decoded once, whatever the models; errors in columns."""
    sources = [Source(**row) for row in manifest.select(MANIFEST_COLUMNS).to_pylist()]
    rows = [
        _prepared_row(prepare_each(fetched, policies, limits, decoder), identifiers)
        for fetched in fetch_all(sources, limits.max_bytes)
    ]
    return pa.Table.from_pylist(rows, schema=PREPARED)


def _prepared_row(under_each: list[Prepared], identifiers: Identifiers) -> dict[str, Any]:
    prepared = under_each[0]  # all that does not depend on a policy
    header = {name: prepared.header.get(name) for name in HEADER.names}
    for name in ("study_uid", "series_uid", "sop_uid"):
        uid = header[name]
        header[name] = identifiers.uid(str(uid) if uid is not None else None)
    return {
        "object_id": prepared.source.object_id,
        "uri": identifiers.uri(prepared.source.uri),
        "changed": prepared.changed,
        "error_code": str(prepared.error.code) if prepared.error else None,
        "error_detail": prepared.error.detail if prepared.error else None,
        "content_sha256": prepared.content_sha256,
        "bytes": prepared.bytes,
        **header,
        "fetch_ms": prepared.fetch_ms,
        "decode_ms": prepared.decode_ms,
        "frames": [frame.index for frame in prepared.frames],
        "geometry": [[json.dumps(frame.geometry._asdict()) for frame in p.frames] for p in under_each],
        "constant": [frame.constant for frame in prepared.frames],
        "channels": [[frame.pixels.shape[0] for frame in p.frames] for p in under_each],
        "pixels": [_concatenate(p.frames) for p in under_each],
    }


def _concatenate(frames: list[Frame]) -> bytes:
    return b"".join(np.ascontiguousarray(frame.pixels, np.uint16).tobytes() for frame in frames)


def score_objects(
    prepared: pa.Table, policies: Sequence[PixelPolicy], models: Sequence[tuple[Scorer, ModelUse]]
) -> pa.Table:
    """SCORED_OBJECTS rows of PREPARED rows: all frames of all objects scored in common batches, model after model."""
    objects = prepared.select(["object_id", "frames", "channels"]).to_pylist()
    by_model = []
    for scorer, use in models:
        pixels = (
            frame
            for row, buffers in zip(objects, prepared["pixels"], strict=True)
            for frame in _frames(buffers[use.policy].as_buffer(), row["channels"][use.policy], policies[use.policy])
        )
        found = scorer.score(pixels)
        by_model.append([_scored_columns(row["object_id"], row["frames"], found, use.judgement) for row in objects])
    scored = prepared.select(pa.schema(_OBJECT).names)
    for name in ("scores", "score_ms", "heatmaps"):
        values = [[columns[name] for columns in of_object] for of_object in zip(*by_model, strict=True)]
        scored = scored.append_column(name, pa.array(values, SCORED_OBJECTS.field(name).type))
    times = pa.array([datetime.now(UTC)] * len(objects), SCORED_OBJECTS.field("scored_at").type)
    return scored.append_column("scored_at", times).cast(SCORED_OBJECTS)


def _frames(buffer: pa.Buffer | None, channels: list[int], policy: PixelPolicy) -> Iterator[NDArray[np.uint16]]:
    if buffer is None or not channels:
        return
    values = np.frombuffer(buffer, np.uint16)
    plane = policy.height_px * policy.width_px
    start = 0
    for count in channels:
        yield values[start : start + count * plane].reshape(count, policy.height_px, policy.width_px)
        start += count * plane


def _scored_columns(
    object_id: int, frames: list[int], found: Iterator[FrameScore], judgement: Judgement
) -> dict[str, Any]:
    scores: list[float | None] = []
    times: list[float] = []
    heatmaps: list[bytes | None] = []
    # An object's frames come first, `found` second: zip must not take a score that belongs to the next
    # object.
    for frame, score in zip(frames, found, strict=False):
        scores.append(score.score if score.finite else None)
        times.append(score.score_ms)
        flagged = score.finite and judgement.flags(score.score)
        kept = score.finite and keep(judgement.heatmaps, flagged, object_id, frame)
        heatmaps.append(_quantized(judgement.unit(score.heatmap)) if kept else None)
    return {"scores": scores, "score_ms": times, "heatmaps": heatmaps}


def _quantized(unit: NDArray[np.float32]) -> bytes:
    return np.rint(unit.astype(np.float64) * FULL_SCALE).astype(np.uint16).tobytes()


def write_part(scored: pa.Table, run_uri: str, run_id: str, chapter: int, models: Sequence[ModelUse]) -> pa.Table:
    """Write SCORED_OBJECTS rows as one part of the score table: what it holds, in one row (objects, failed).

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
    return pa.table({"objects": [scored.num_rows], "failed": [len(failed.unique())]})


def finish_rows(scored: pa.Table, run_uri: str, run_id: str, chapter: int, models: Sequence[ModelUse]) -> pa.Table:
    """SCORES rows of SCORED_OBJECTS rows, one a frame and model; heatmaps are packed and written below `run_uri`."""
    frames = [
        [_frame_rows(row, number, use.judgement) for number, use in enumerate(models)]
        for row in scored.select(_FRAME_INPUT).to_pylist()
    ]
    references = _write_heatmaps(_members(scored, frames, models), run_uri, chapter)
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


_FRAME_INPUT = ["object_id", "changed", "error_code", "error_detail", "frames", "constant", "scores", "score_ms"]
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


def _frame_rows(row: dict[str, Any], model: int, judgement: Judgement) -> list[dict[str, Any]]:
    """The columns that differ between an object's frames and models; one row for an object that failed whole."""
    common = {"object_id": row["object_id"], "model_id": judgement.model_id, "threshold": judgement.threshold}
    if row["error_code"] is not None:
        code = row["error_code"]
        return [
            {
                **common,
                "frame": 0,
                "status": status_of(code),
                "error_code": code,
                "error_detail": row["error_detail"],
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
        detail = _remarks(constant, row["changed"]) if score is not None else "the detector's answer is not finite"
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


def _remarks(constant: bool, changed: bool) -> str | None:
    said = [remark for remark, holds in ((CONSTANT_FRAME, constant), (ETAG_CHANGED, changed)) if holds]
    return ", ".join(said) or None


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
                    yield _member(row, models), encode_png(unit, placed)


def _write_heatmaps(members: Iterable[tuple[str, bytes]], run_uri: str, chapter: int) -> dict[str, str]:
    """Write the members as one shard; what the table's `heatmap` column says of each."""
    kept = list(members)
    if not kept:
        return {}
    shard = pack(kept, chapter)
    storage.patiently(lambda: storage.write_bytes(storage.join(run_uri, shard.name), shard.data))
    return {name: shard.reference(name) for name, _ in kept}
