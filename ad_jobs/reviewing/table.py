"""A run's rows in a local database, once sorted and then asked many times: frames, images and studies by rank.

`frames` has every row of the score table; `kept` has what of it hangs on no rank.
`images` has of each model one row for frames of the same content: that of the object with the least id.
`studies` has a row for each study, or folder of objects without one.
All are ordered by `position`, 1 being the most suspicious; in a blinded reading the order is drawn by a seed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from ad_jobs.archive.manifest import read_parts
from ad_jobs.archive.manifest_record import ManifestInfo
from ad_jobs.archive.sql import Database, Stream
from ad_jobs.deciding.record import table_of
from ad_jobs.deciding.stacks import STACK_DECISIONS
from ad_jobs.deciding.table import DECISIONS, folders
from ad_jobs.results.parts import RowGroup
from ad_jobs.results.score_table import BATCH_ROWS, Rows
from ad_jobs.schema import SCORES

log = logging.getLogger("retroscan.review")

# Of the score table, what a reviewer may see or ask for.
_READ = (
    *("object_id", "frame", "model_id", "uri", "status", "error_code", "error_detail", "score", "threshold"),
    *("flagged", "heatmap", "content_sha256", "study_uid", "series_uid", "modality", "manufacturer", "study_month"),
    *("rows", "columns", "bits", "photometric"),
)
_ROWS = pa.schema([*(SCORES.field(name) for name in _READ), ("folder", pa.string())])
# Of the manifest, where it has them: the name there, here, and its type.
_OF_MANIFEST = (
    ("site", "site", pa.string()),
    ("model", "scanner", pa.string()),
    ("instance_number", "slice", pa.int32()),
)
_MANIFEST = pa.schema([("object_id", pa.int64()), *((here, kind) for _, here, kind in _OF_MANIFEST)])
# What a decision says of a frame, or of all of a study or series.
_SAID = ("model_id", "p", "flagged", "rank")
# By which columns of the decision a frame is told to be meant, and what these are here.
_KEYS = {
    "image": {"object_id": "object_id", "frame": "frame"},
    "study": {"group": "group"},
    "series": {"group": "series"},
}

# As they come, which is nearly the order of their ids: what is wide is not sorted.
_KEPT = """
    CREATE TABLE kept AS
    SELECT scores.* EXCLUDE (folder, study_uid), site, scanner, slice,
        coalesce(study_uid, folder, 'object ' || object_id) AS "group",
        coalesce(series_uid, folder, 'object ' || object_id) AS series,
        -- Eight bytes to look through instead of a text; what they find is compared as a whole.
        hash(content_sha256) AS content_hash, hash(coalesce(series_uid, "group")) AS stack_hash
    FROM scores LEFT JOIN manifest USING (object_id)
"""
_PLACES = """
    CREATE TABLE places AS
    WITH judged AS (
        SELECT object_id, frame, model_id, kept.score, coalesce(decided.flagged, kept.flagged, false) AS flagged, p,
            rank AS decided_rank
        FROM kept LEFT JOIN ({decided}) AS decided USING ({keys})),
    placed AS (
        SELECT *, row_number() OVER (
            PARTITION BY model_id ORDER BY decided_rank NULLS LAST, score DESC NULLS LAST, object_id, frame) AS place
        FROM judged)
    SELECT object_id, frame, model_id, flagged, p,
        CASE WHEN score IS NOT NULL THEN coalesce(decided_rank, place) END AS rank, {position} AS position
    FROM placed ORDER BY object_id, frame, model_id
"""
_FRAMES = """
    CREATE VIEW frames AS
    SELECT kept.* REPLACE (places.flagged AS flagged), p, rank, position
    FROM kept JOIN places USING (object_id, frame, model_id)
"""
_DRAWN = """
    row_number() OVER (PARTITION BY model_id ORDER BY md5(concat_ws('/', {seed}, object_id, frame)), object_id, frame)
"""
_IMAGES = """
    CREATE TABLE images AS
    WITH firsts AS (
        SELECT model_id, frame, min(object_id) AS object_id, count(*) AS copies
        FROM kept
        -- Sixty-four bits of a hash and forty-eight of SHA-256 itself, which are quicker to compare than all of it.
        GROUP BY model_id, frame, content_hash, left(content_sha256, 12),
            CASE WHEN content_sha256 IS NULL THEN object_id END)
    SELECT model_id, position, rank, object_id, frame, {image} AS image, copies, uri, status,
        coalesce(error_code, status) AS reason, score, p, flagged, heatmap IS NOT NULL AS has_heatmap,
        modality, manufacturer, scanner, site, study_month,
        "group"
    FROM frames JOIN firsts USING (model_id, object_id, frame) ORDER BY model_id, position
"""
_STUDIES = """
    CREATE TABLE studies AS
    SELECT model_id, row_number() OVER (PARTITION BY model_id ORDER BY min(position)) AS position, "group",
        count(score) AS frames, count(*) FILTER (flagged) AS flagged_frames,
        count(*) FILTER (status = 'failed') AS failed_frames, max(score) AS score, min(p) AS p,
        bool_or(flagged) AS flagged, arg_min(object_id, position) AS object_id, arg_min(frame, position) AS frame,
        min(modality) AS modality, min(study_month) AS study_month
    FROM frames GROUP BY model_id, "group" ORDER BY 1, 2
"""
# An object and a frame as one number, which is compared at once.
IMAGE = "object_id::HUGEINT * 4294967296 + frame"


def load(
    database: Database,
    rows: Rows,
    manifest: ManifestInfo | None,
    decision: tuple[str, str, str] | None,
    seed: int | None,
) -> None:
    """Fill an empty database.

    Args:
        database: an empty one.
        rows: the run's.
        manifest: the run's, if it lies where the run says.
        decision: run, id and level of the decision that says what is flagged; the run itself without one.
        seed: draws the order of a blinded reading.

    Raises:
        JobError: as `Rows.batches`, or a part of the manifest is not what it was.
    """
    level = decision[2] if decision is not None else "image"
    position = "place" if seed is None else _DRAWN.format(seed=int(seed))
    log.info("Sorting the rows of the run by rank: once, in a local file.")
    tables = {
        "scores": Stream(_ROWS, _scores(rows)),
        "manifest": Stream(_MANIFEST, _manifest(manifest)),
        "decided": _decided(decision),
    }
    keys = ", ".join(f'"{name}"' for name in (*_KEYS[level].values(), "model_id"))
    # A decision by columns may have a study twice.
    once = f"SELECT {keys}, min(p) AS p, bool_or(flagged) AS flagged, min(rank) AS rank FROM decided GROUP BY ALL"
    places = _PLACES.format(keys=keys, position=position, decided="FROM decided" if level == "image" else once)
    decided = tables.pop("decided")
    database.execute(_KEPT, tables)
    database.execute(places, {"decided": decided})
    database.execute(_FRAMES)
    database.execute(_IMAGES.format(image=IMAGE))
    database.execute(_STUDIES)


def _scores(rows: Rows) -> Iterator[pa.RecordBatch]:
    for batch in rows.batches(_READ):
        alone = pc.is_null(batch["study_uid"])
        # Of an object without a study.
        folder = pc.if_else(alone, folders(batch["uri"]), pa.scalar(None, pa.string()))
        yield pa.RecordBatch.from_arrays([*(batch[name] for name in _READ), folder], schema=_ROWS)


def _manifest(info: ManifestInfo | None) -> Iterator[pa.RecordBatch]:
    columns = [] if info is None else [there for there, _, _ in _OF_MANIFEST if there in info.names]
    if info is None or not columns:
        return
    for table in read_parts(info, ["object_id", *columns]):
        for batch in table.to_batches():
            found = [
                batch[there].cast(kind) if there in columns else pa.nulls(batch.num_rows, kind)
                for there, _, kind in _OF_MANIFEST
            ]
            yield pa.RecordBatch.from_arrays([batch["object_id"], *found], schema=_MANIFEST)


def _decided(decision: tuple[str, str, str] | None) -> Stream:
    level = decision[2] if decision is not None else "image"
    columns = [*_KEYS[level], *_SAID]
    known = DECISIONS if level == "image" else STACK_DECISIONS
    schema = pa.schema([known.field(name).with_name(_KEYS[level].get(name, name)) for name in columns])
    if decision is None:
        return Stream(schema, [])
    run_uri, decision_id, _ = decision
    batches = RowGroup(table_of(run_uri, decision_id)).batches(columns, BATCH_ROWS)
    return Stream(
        schema, (pa.RecordBatch.from_arrays(batch.select(columns).columns, schema=schema) for batch in batches)
    )
