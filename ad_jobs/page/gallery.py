"""The pictures of the report: the highest-scored frames, each with its heatmap."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ad_jobs.archive import objects
from ad_jobs.archive.identifiers import is_hashed
from ad_jobs.errors import ImageError, JobError
from ad_jobs.images.guard import of_this_process
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.page.colours import overlay
from ad_jobs.page.pictures import Pictures
from ad_jobs.results.read import open_heatmap
from ad_jobs.results.run import ModelRef
from ad_jobs.results.score_table import ORDER, ScoreTable
from ad_jobs.schema import SCORED
from cluster import storage

if TYPE_CHECKING:
    from ad_jobs.verifying.run_archive import RunArchive

MAX_SIDE_PX = 512
COLUMNS = [*ORDER, "uri", "status", "score", "flagged", "heatmap", "content_sha256", "modality"]
_BEST = """
    SELECT *, row_number() OVER (ORDER BY score DESC, object_id, frame) AS rank FROM (
        SELECT * FROM scores WHERE status = $1 AND model_id = $2
        ORDER BY score DESC, object_id, frame LIMIT $3)
    ORDER BY rank
"""
_OF_DECISION = "SELECT scores.*, rank FROM scores JOIN ranks USING (object_id, frame, model_id) ORDER BY rank"
# Of each label that says so, the highest frame that it is about, where none of these is flagged.
_MISSED = """
    SELECT * FROM (
        SELECT scores.*, bool_or(flagged) OVER of_label AS found,
            row_number() OVER (PARTITION BY labels.uri, labels.frame ORDER BY score DESC, scores.frame) AS place
        FROM scores JOIN labels
            ON scores.uri = labels.uri AND (labels.frame IS NULL OR labels.frame = scores.frame)
        WHERE status = $1 AND model_id = $2
        WINDOW of_label AS (PARTITION BY labels.uri, labels.frame))
    WHERE NOT found AND place = 1 ORDER BY score DESC, object_id, frame LIMIT $3
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
    """One frame of the gallery; `picture` and `heatmap` are addresses, `notes` say what is missing.

    The page calls it as `names_of` does.
    """

    rank: int
    uri: str
    frame: int
    score: float
    flagged: bool
    modality: str | None
    width: int
    height: int
    picture: str | None
    heatmap: str | None
    notes: list[str]
    # By content and frame so many of the rows are this one picture; ranks up to `last_rank`.
    copies: int = 1
    last_rank: int = 0
    # anomalous or normal, as the evaluation's labels have it.
    label: str | None = None


class Truth(NamedTuple):
    """The labels of an evaluation: whether each is anomalous, by URI and frame, which is None for whole objects."""

    of: Mapping[tuple[str, int | None], bool]

    def label(self, uri: str, frame: int) -> str | None:
        """What a frame is; None where no label says."""
        found = self.of.get((uri, frame), self.of.get((uri, None)))
        return None if found is None else "anomalous" if found else "normal"

    @property
    def anomalous(self) -> pa.Table:
        """The labels that say so: uri, frame."""
        named = [key for key, is_anomalous in self.of.items() if is_anomalous]
        uris, frames = [uri for uri, _ in named], [frame for _, frame in named]
        return pa.table({"uri": pa.array(uris, pa.string()), "frame": pa.array(frames, pa.int32())})


UNKNOWN = Truth({})


class Gallery(NamedTuple):
    """What cards are made with."""

    table: ScoreTable
    limits: Limits
    pictures: Pictures
    truth: Truth = UNKNOWN
    # Of a run with hashed names, whose pictures are to be shown.
    archive: RunArchive | None = None

    def cards(self, model: ModelRef, top: int, ranks: pa.Table | None = None) -> list[Card]:
        """The `top` scored frames of one model, highest score first; equal scores in the order of the table.

        With `ranks` (object_id, frame, model_id, rank) those. Of equal pictures there is one card.
        """
        if ranks is None:
            best = self.table.query(_BEST, COLUMNS, [SCORED, model.model_id, top])
        else:
            best = self.table.query(_OF_DECISION, COLUMNS, ranks=ranks)
        shown: dict[Any, list[Any]] = {}
        for _, row in best.to_pandas().iterrows():
            content = row["content_sha256"] if isinstance(row["content_sha256"], str) else row["object_id"]
            shown.setdefault((content, row["frame"]), []).append(row)
        return [self._collapsed(rows, model) for rows in shown.values()]

    def missed(self, model: ModelRef, count: int) -> list[Card]:
        """Frames that are labelled anomalous and not flagged, the highest-scored first."""
        parameters = [SCORED, model.model_id, count]
        rows = self.table.query(_MISSED, COLUMNS, parameters, labels=self.truth.anomalous).to_pandas()
        return [self.card(rank, row, model) for rank, (_, row) in enumerate(rows.iterrows(), start=1)]

    def card(self, rank: int, row: Any, model: ModelRef) -> Card:
        """One row as a card."""
        uri, frame = str(row["uri"]), int(row["frame"])
        notes: list[str] = []
        heat, size = _heatmap(self.table.uri, row["heatmap"], notes)
        original = self._original(row, PixelPolicy.model_validate(model.policy), notes)
        if original is not None:
            size = original.shape[:2]
        return Card(
            rank=rank,
            uri=uri,
            frame=frame,
            score=float(row["score"]),
            flagged=bool(row["flagged"]),
            modality=row["modality"] if isinstance(row["modality"], str) else None,
            width=size[1],
            height=size[0],
            picture=None if original is None else self.pictures.put(original, "JPEG"),
            heatmap=None if heat is None else self.pictures.put(heat, "PNG"),
            notes=notes,
            label=self.truth.label(uri, frame),
        )

    def _original(self, row: Any, policy: PixelPolicy, notes: list[str]) -> npt.NDArray[np.uint8] | None:
        """The display picture [h, w, 3], or None and a note if the archive no longer has what was scored."""
        uri, within = str(row["uri"]), None
        if hashed := is_hashed(uri):
            if self.archive is None:
                notes.append(
                    "Identifiers are hashed, so the original is not shown; `report --manifest` with the run's shows it."
                )
                return None
            (source,) = self.archive.sources([int(row["object_id"])])
            uri, within = source.uri, source.within
        try:
            data = objects.fetch(uri, self.limits.max_bytes, within).data
        except storage.NotFound:
            notes.append("The original is gone from the archive.")
        except storage.AccessDenied:
            notes.append("The archive refuses the original.")
        except storage.StorageError as error:
            # What it says names the place.
            notes.append(f"The original cannot be fetched{'' if hashed else f': {error.detail}'}.")
        except ImageError as error:
            notes.append(f"The original cannot be fetched ({error.code}).")
        else:
            if hashlib.sha256(data).hexdigest() != row["content_sha256"]:
                notes.append("The original has changed since the scan, so it is not shown.")
                return None
            try:
                return of_this_process().preview(data, int(row["frame"]), policy, self.limits, MAX_SIDE_PX)
            except ImageError as error:
                notes.append(f"The original cannot be shown ({error.code}).")
        return None

    def _collapsed(self, rows: Sequence[Any], model: ModelRef) -> Card:
        made = self.card(int(rows[0]["rank"]), rows[0], model)
        return replace(made, copies=len(rows), last_rank=int(rows[-1]["rank"]))


def side_by_side(gallery: Gallery, top: int) -> list[list[Card]]:
    """The `top` frames that all models together rank highest, each as one card a model in the order of the record.

    Scores of different models have different scales; their ranks do not.
    """
    table = gallery.table
    models = table.record.models
    ranks = table.query(_RANKED, [*ORDER, "status", "score"], [SCORED, len(models), top])
    rows = table.query(_WITH_RANK, COLUMNS, ranks=ranks)
    ranked = rows.to_pandas().set_index(list(ORDER), drop=False)

    def card(key: Any, model: ModelRef) -> Card:
        row = ranked.loc[(*key, model.model_id)]
        return gallery.card(int(row["rank"]), row, model)

    # Of each frame one row a model, in the order of their common rank.
    frames = ranks.select(["object_id", "frame"]).to_pandas().drop_duplicates()
    return [[card(key, model) for model in models] for key in frames.itertuples(index=False, name=None)]


def names_of(galleries: Iterable[Iterable[Card]]) -> dict[str, str]:
    """Of each card's URI the shortest end of its path that no other's ends with: the file's name where that is enough.

    >>> from types import SimpleNamespace as card
    >>> names_of([[card(uri="/a/x/1.png"), card(uri="/a/y/1.png"), card(uri="/a/x/2.png")]])
    {'/a/x/1.png': 'x/1.png', '/a/y/1.png': 'y/1.png', '/a/x/2.png': '2.png'}
    """
    # Of each the ends of its path, from the shortest to the whole.
    ends: dict[str, list[str]] = {}
    for uri in dict.fromkeys(card.uri for cards in galleries for card in cards):
        parts = uri.rstrip("/").split("/")
        ends[uri] = ["/".join(parts[-length:]) for length in range(1, len(parts) + 1)]
    known = Counter(end for of_uri in ends.values() for end in of_uri)
    return {uri: next((end for end in of_uri if known[end] == 1), uri) for uri, of_uri in ends.items()}


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
