"""The stages of a scan as functions from Arrow table to Arrow table, one row an object until the last.

    manifest rows -> prepare_objects -> pixels -> score_objects -> scores per frame -> table.finish_rows -> score table

An object's frames travel in its one row, so that they are never split over two parts of the table.
Pixels travel as uint16 at the detector's input size: half of float32, and all of a 16-bit image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ad_jobs.archive.fetching import Decoder, FetchedObject, Prepared, Source, fetch_all, prepare_each
from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.images.decode import Frame
from ad_jobs.images.domain import Taker
from ad_jobs.images.geometry import Geometry
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.images.tiling import geometry_to_store, to_store
from ad_jobs.results.heatmaps import FULL_SCALE, keep
from ad_jobs.scanning.judgement import Judgement, ModelUse
from ad_jobs.schema import HEADER

# Fetching workers import this module and need no torch.
if TYPE_CHECKING:
    from ad_jobs.scoring.scorer import FrameScore, Scorer

MANIFEST_COLUMNS = ["object_id", "uri", "bytes", "etag"]

_OBJECT = [
    ("object_id", pa.int64()),
    ("uri", pa.string()),
    # Of each policy.
    ("remarks", pa.list_(pa.list_(pa.string()))),
    ("error_code", pa.string()),
    ("error_detail", pa.string()),
    ("content_sha256", pa.string()),
    ("bytes", pa.int64()),
    *HEADER,
    ("fetch_ms", pa.float32()),
    ("decode_ms", pa.float32()),
    ("frames", pa.list_(pa.int32())),
    # Of each policy: JSON of each frame.
    ("geometry", pa.list_(pa.list_(pa.string()))),
    ("constant", pa.list_(pa.bool_())),
    # Of each model: why the object is outside of its domain, null where it is not.
    ("refused", pa.list_(pa.string())),
]
PREPARED = pa.schema(
    [
        *_OBJECT,
        # Of each policy: of each frame.
        ("channels", pa.list_(pa.list_(pa.int8()))),
        # Of each policy: the frames' uint16 [c, h, w], end to end.
        ("pixels", pa.list_(pa.large_binary())),
    ]
)
# As of the prepared objects, but that geometry is that of the heatmaps.
SCORED_OBJECTS = pa.schema(
    [
        *_OBJECT,
        # Of each model: of each frame, null where not finite.
        ("scores", pa.list_(pa.list_(pa.float32()))),
        ("score_ms", pa.list_(pa.list_(pa.float32()))),
        # uint16 [h, w] on its scale, of the size of `geometry_to_store`; null where not kept.
        ("heatmaps", pa.list_(pa.list_(pa.large_binary()))),
        ("scored_at", pa.timestamp("us", tz="UTC")),
        # What ran the models; of objects that had a frame to score.
        ("engines", pa.list_(pa.string())),
    ]
)


def prepare_objects(
    manifest: pa.Table,
    policies: Sequence[PixelPolicy],
    limits: Limits,
    decoder: Decoder,
    identifiers: Identifiers,
    takers: Sequence[Taker],
    within: str | None = None,
) -> pa.Table:
    """PREPARED rows of manifest rows: each object fetched and decoded once, whatever the models; errors in columns.

    `takers` are the models; `within` is the folder that no link may lead out of.
    """
    sources = [Source(**row, within=within) for row in manifest.select(MANIFEST_COLUMNS).to_pylist()]
    return prepare_fetched(fetch_all(sources, limits.max_bytes), policies, limits, decoder, identifiers, takers)


def prepare_fetched(
    objects: Iterable[FetchedObject],
    policies: Sequence[PixelPolicy],
    limits: Limits,
    decoder: Decoder,
    identifiers: Identifiers,
    takers: Sequence[Taker],
) -> pa.Table:
    """PREPARED rows of objects whose bytes are here, in their order."""
    rows = [_prepared_row(prepare_each(one, policies, limits, decoder, takers), identifiers) for one in objects]
    return pa.Table.from_pylist(rows, schema=PREPARED)


def _prepared_row(under_each: list[Prepared], identifiers: Identifiers) -> dict[str, Any]:
    # All that does not depend on a policy; one that no model needs has no frames.
    prepared = next((one for one in under_each if one.frames), under_each[0])
    header = {name: prepared.header.get(name) for name in HEADER.names}
    for name in ("study_uid", "series_uid", "sop_uid"):
        uid = header[name]
        header[name] = identifiers.uid(str(uid) if uid is not None else None)
    return {
        "object_id": prepared.source.object_id,
        "uri": identifiers.uri(prepared.source.uri),
        "remarks": [list(one.remarks) for one in under_each],
        "error_code": str(prepared.error.code) if prepared.error else None,
        "error_detail": prepared.error.detail if prepared.error else None,
        "content_sha256": prepared.content_sha256,
        "bytes": prepared.bytes,
        **header,
        "fetch_ms": prepared.fetch_ms,
        "decode_ms": prepared.decode_ms,
        "frames": [frame.index for frame in prepared.frames],
        "geometry": [_texts(frame.geometry for frame in p.frames) for p in under_each],
        "constant": [frame.constant for frame in prepared.frames],
        "refused": list(prepared.refused),
        "channels": [[frame.pixels.shape[0] for frame in p.frames] for p in under_each],
        "pixels": [_concatenate(p.frames) for p in under_each],
    }


def _texts(placed: Iterable[Geometry]) -> list[str]:
    return [json.dumps(geometry._asdict()) for geometry in placed]


def _concatenate(frames: list[Frame]) -> bytes:
    return b"".join(np.ascontiguousarray(frame.pixels, np.uint16).tobytes() for frame in frames)


def score_objects(
    prepared: pa.Table, policies: Sequence[PixelPolicy], models: Sequence[tuple[Scorer, ModelUse]]
) -> pa.Table:
    """SCORED_OBJECTS rows of PREPARED rows: all frames of all objects scored in common batches, model after model."""
    objects = prepared.select(["object_id", "frames", "channels", "refused"]).to_pylist()
    # Of each object, of each policy, of each frame.
    placed = [
        [[Geometry(**json.loads(text)) for text in of_policy] for of_policy in of_object]
        for of_object in prepared["geometry"].to_pylist()
    ]
    by_model = []
    for number, (scorer, use) in enumerate(models):
        taken = [not row["refused"] or row["refused"][number] is None for row in objects]
        pixels = (
            frame
            for row, geometry, buffers, takes in zip(objects, placed, prepared["pixels"], taken, strict=True)
            if takes
            for frame in _frames(buffers[use.policy].as_buffer(), row["channels"][use.policy], geometry[use.policy])
        )
        found = scorer.score(pixels)
        by_model.append(
            [
                _scored_columns(
                    row["object_id"],
                    list(zip(row["frames"], geometry[use.policy], strict=True)) if takes else [],
                    found,
                    use.judgement,
                    policies[use.policy],
                )
                for row, geometry, takes in zip(objects, placed, taken, strict=True)
            ]
        )
    scored = prepared.select(pa.schema(_OBJECT).names)
    kept = [
        [_texts(geometry_to_store(one, policy) for one in frames) for frames, policy in zip(of, policies, strict=True)]
        for of in placed
    ]
    scored = scored.set_column(
        scored.column_names.index("geometry"), "geometry", pa.array(kept, PREPARED.field("geometry").type)
    )
    for name in ("scores", "score_ms", "heatmaps"):
        values = [[columns[name] for columns in of_object] for of_object in zip(*by_model, strict=True)]
        scored = scored.append_column(name, pa.array(values, SCORED_OBJECTS.field(name).type))
    times = pa.array([datetime.now(UTC)] * len(objects), SCORED_OBJECTS.field("scored_at").type)
    scored = scored.append_column("scored_at", times)
    # Known once a batch is scored.
    engines = sorted({scorer.engine for scorer, _ in models})
    ran = [engines if row["frames"] else [] for row in objects]
    return scored.append_column("engines", pa.array(ran, pa.list_(pa.string()))).cast(SCORED_OBJECTS)


def _frames(buffer: pa.Buffer | None, channels: list[int], placed: list[Geometry]) -> Iterator[NDArray[np.uint16]]:
    if buffer is None or not channels:
        return
    values = np.frombuffer(buffer, np.uint16)
    start = 0
    for count, geometry in zip(channels, placed, strict=True):
        end = start + count * geometry.height_px * geometry.width_px
        yield values[start:end].reshape(count, *geometry.size_px)
        start = end


def _scored_columns(
    object_id: int,
    frames: list[tuple[int, Geometry]],
    found: Iterator[FrameScore],
    judgement: Judgement,
    policy: PixelPolicy,
) -> dict[str, Any]:
    scores: list[float | None] = []
    times: list[float] = []
    heatmaps: list[bytes | None] = []
    # An object's frames come first, `found` second: zip must not take a score that belongs to the next object.
    for (frame, geometry), score in zip(frames, found, strict=False):
        scores.append(score.score if score.finite else None)
        times.append(score.score_ms)
        flagged = score.finite and judgement.flags(score.score)
        kept = score.finite and keep(judgement.heatmaps, flagged, object_id, frame)
        heatmaps.append(_quantized(judgement.unit(to_store(score.heatmap, geometry, policy))) if kept else None)
    return {"scores": scores, "score_ms": times, "heatmaps": heatmaps}


def _quantized(unit: NDArray[np.float32]) -> bytes:
    return np.rint(unit.astype(np.float64) * FULL_SCALE).astype(np.uint16).tobytes()
