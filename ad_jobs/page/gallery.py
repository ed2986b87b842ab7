"""The pictures of the report: the highest-scored frames, each with its heatmap, as data URIs."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ad_jobs.archive import objects
from ad_jobs.archive.identifiers import is_hashed
from ad_jobs.errors import ImageError, JobError
from ad_jobs.images.guard import of_this_process
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.page.colours import overlay
from ad_jobs.results.read import open_heatmap
from ad_jobs.results.run import ModelRef
from ad_jobs.results.score_table import ORDER, ScoreTable
from ad_jobs.schema import SCORED
from cluster import storage

MAX_SIDE_PX = 512
_JPEG_QUALITY = 88
COLUMNS = [*ORDER, "uri", "status", "score", "flagged", "heatmap", "content_sha256", "modality"]
_BEST = """
    SELECT * FROM scores WHERE status = $1 AND model_id = $2
    ORDER BY score DESC, object_id, frame LIMIT $3
"""
# Rows of the frames that all models scored and that rank highest on average.
_RANKED = """
    SELECT object_id, frame, model_id, rank FROM (
        SELECT *, avg(rank) OVER frames AS common, count(*) OVER frames AS models FROM (
            SELECT object_id, frame, model_id,
                row_number() OVER (PARTITION BY model_id ORDER BY score DESC, object_id, frame) AS rank
            FROM scores WHERE status = $1)
        WINDOW frames AS (PARTITION BY object_id, frame))
    WHERE models = $2 ORDER BY common, object_id, frame LIMIT $2 * $3
"""
_WITH_RANK = "SELECT scores.*, rank FROM scores JOIN ranks USING (object_id, frame, model_id)"


@dataclass(frozen=True)
class Card:
    """One frame of the gallery; `picture` and `heatmap` are data URIs, `notes` say what is missing."""

    rank: int
    uri: str
    name: str
    frame: int
    score: float
    flagged: bool
    modality: str | None
    width: int
    height: int
    picture: str | None
    heatmap: str | None
    notes: list[str]


def cards(table: ScoreTable, model: ModelRef, limits: Limits, top: int) -> list[Card]:
    """The `top` scored frames of one model, highest score first; equal scores in the order of the table."""
    policy = PixelPolicy.model_validate(model.policy)
    best = table.query(_BEST, COLUMNS, [SCORED, model.model_id, top]).to_pandas()
    return [_card(table.uri, rank, row, policy, limits) for rank, (_, row) in enumerate(best.iterrows(), start=1)]


def side_by_side(table: ScoreTable, limits: Limits, top: int) -> list[list[Card]]:
    """The `top` frames that all models together rank highest, each as one card a model in the order of the record.

    Scores of different models have different scales; their ranks do not.
    """
    models = table.record.models
    ranks = table.query(_RANKED, [*ORDER, "status", "score"], [SCORED, len(models), top])
    rows = table.query(_WITH_RANK, COLUMNS, ranks=ranks)
    ranked = rows.to_pandas().set_index(list(ORDER), drop=False)
    policies = [PixelPolicy.model_validate(model.policy) for model in models]

    def card(key: Any, model: ModelRef, policy: PixelPolicy) -> Card:
        row = ranked.loc[(*key, model.model_id)]
        return _card(table.uri, int(row["rank"]), row, policy, limits)

    # Of each frame one row a model, in the order of their common rank.
    frames = ranks.select(["object_id", "frame"]).to_pandas().drop_duplicates()
    return [
        [card(key, model, policy) for model, policy in zip(models, policies, strict=True)]
        for key in frames.itertuples(index=False, name=None)
    ]


def _card(run_uri: str, rank: int, row: Any, policy: PixelPolicy, limits: Limits) -> Card:
    uri, frame = str(row["uri"]), int(row["frame"])
    notes: list[str] = []
    heat, size = _heatmap(run_uri, row["heatmap"], notes)
    original = _original(uri, frame, row["content_sha256"], policy, limits, notes)
    if original is not None:
        size = original.shape[:2]
    return Card(
        rank=rank,
        uri=uri,
        name=uri.rstrip("/").rpartition("/")[2] or uri,
        frame=frame,
        score=float(row["score"]),
        flagged=bool(row["flagged"]),
        modality=row["modality"] if isinstance(row["modality"], str) else None,
        width=size[1],
        height=size[0],
        picture=None if original is None else data_uri(original, "JPEG"),
        heatmap=None if heat is None else data_uri(heat, "PNG"),
        notes=notes,
    )


def _heatmap(run_uri: str, reference: object, notes: list[str]) -> tuple[npt.NDArray[np.uint8] | None, tuple[int, ...]]:
    """(the heatmap's colours [h, w, 4] without padding, the size of its original)."""
    if not isinstance(reference, str):
        notes.append("No heatmap was kept for this image.")
        return None, (1, 1)
    try:
        values, geometry, _ = open_heatmap(run_uri, reference).drawn()
    except (JobError, storage.StorageError) as error:
        notes.append(f"The heatmap cannot be read: {error}")
        return None, (1, 1)
    box = np.s_[geometry.top : geometry.top + geometry.height, geometry.left : geometry.left + geometry.width]
    # The browser stretches it over the picture: the same linear interpolation as on the source, far fewer bytes.
    return overlay(values[box]), (geometry.rows, geometry.columns)


def _original(
    uri: str, frame: int, sha256: object, policy: PixelPolicy, limits: Limits, notes: list[str]
) -> npt.NDArray[np.uint8] | None:
    """The display picture [h, w, 3], or None and a note if the archive no longer has what was scored."""
    # It leads nowhere.
    if is_hashed(uri):
        notes.append("Identifiers are hashed, so the original is not shown.")
        return None
    try:
        data = objects.fetch(uri, limits.max_bytes).data
    except storage.NotFound:
        notes.append("The original is gone from the archive.")
    except storage.AccessDenied:
        notes.append("The archive refuses the original.")
    except storage.StorageError as error:
        notes.append(f"The original cannot be fetched: {error.detail}.")
    except ImageError as error:
        notes.append(f"The original cannot be fetched ({error.code}).")
    else:
        if hashlib.sha256(data).hexdigest() != sha256:
            notes.append("The original has changed since the scan, so it is not shown.")
            return None
        try:
            return of_this_process().preview(data, frame, policy, limits, MAX_SIDE_PX)
        except ImageError as error:
            notes.append(f"The original cannot be shown ({error.code}).")
    return None


def data_uri(pixels: npt.NDArray[np.uint8], kind: str) -> str:
    """A picture [h, w, 3 or 4] as a data URI of a PNG or JPEG."""
    buffer = io.BytesIO()
    options = {"quality": _JPEG_QUALITY} if kind == "JPEG" else {"optimize": True}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
