"""The scores of a reviewed run as held-out ones: what reviewers said, and the whole bulk that nobody needed to look at.

What is rejected is the highest-scoring part of a run's normal images, since those were shown.
Taken alone, or added to a few held-out normals, rejected images would make normal scores look higher than they are, and
a threshold by them would be too high.
So they count in the proportion that they have in the run: every row that nobody called abnormal counts as normal.
If a share h of these is abnormal after all, at most a share A / (1 - h) of normal images is above a threshold for A,
and less where what was missed, or never shown, scores high.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ad_jobs.archive.header_options import naming_of
from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.archive.manifest_record import ManifestInfo
from ad_jobs.deciding.cells import by_model
from ad_jobs.deciding.stacks import places_in
from ad_jobs.errors import UsageError
from ad_jobs.evaluation.reviewed import reviewed
from ad_jobs.results.object_columns import ObjectColumns, manifest_of, read_object_columns
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.schema import SCORED, SCORES
from ad_jobs.scoring.calibration import NAMELESS
from ad_jobs.scoring.held_out import HEADER, Scored
from cluster.counting import counted

log = logging.getLogger("retroscan.calibrate")

# A calibration keeps about so many rows: of more, whole studies are drawn, each with the same chance.
MOST_ROWS = 200_000
_BESIDE = [name for name in HEADER.names if name not in SCORES.names]
_OF_TABLE = [name for name in HEADER.names if name in SCORES.names]
_READ = (
    "object_id",
    "frame",
    "model_id",
    "status",
    "score",
    "flagged",
    "content_sha256",
    "uri",
    "study_uid",
    "series_uid",
)


def reviewed_scores(
    table: ScoreTable, model_id: str, identifiers: Identifiers = NAMELESS, most_rows: int = MOST_ROWS
) -> list[Scored]:
    """The scored rows of a model: anomalous what was accepted or supplemented, normal all others but disputed ones.

    `identifiers` say how their institutions are named.

    Raises:
        UsageError: nobody has reviewed the run, or its institutions cannot be named so.
        JobError: a part of the run, of its manifest or of the verdicts is damaged.
    """
    found = reviewed(table.uri)
    said: dict[tuple[int, int], bool | None] = dict.fromkeys(_keys(found.disputed))
    said |= dict(zip(_keys(found.frames), found.frames["anomalous"].astype(bool).tolist(), strict=True))
    info = manifest_of(table.uri, table.record)
    beside = ObjectColumns({}) if info is None else read_object_columns(info, _BESIDE)
    named = _named(identifiers, info)
    count = (
        "SELECT count(*) AS rows, count(*) FILTER (flagged) AS flagged FROM scores WHERE status = ? AND model_id = ?"
    )
    (counts,) = table.query(count, ["status", "model_id", "flagged"], [SCORED, model_id]).to_pylist()
    share = min(1.0, most_rows / max(counts["rows"], 1))
    scored, unseen = [], counts["flagged"]
    reviewed_objects = pa.array(sorted({object_id for object_id, _ in said}), pa.int64())
    for row in _rows(table, model_id, beside, share, reviewed_objects):
        key = row["object_id"], row["frame"]
        anomalous = said.get(key, False)
        unseen -= bool(row["flagged"]) and key in said
        # What is disputed is left out; of normal ones whole studies are, where there are too many.
        if anomalous or (anomalous is False and _place(row["group"]) < share):
            header = {name: row.get(name) for name in HEADER.names} | {"site": named(row.get("site"))}
            content = str(row["content_sha256"])
            scored.append(Scored(content, row["frame"], row["group"], anomalous, row["score"], row["series"], header))
    abnormal = sum(one.anomalous for one in scored)
    log.info(
        "Of the run: %s called abnormal, %s taken as normal, of which %s was called so.",
        counted(abnormal, "frame"),
        counted(len(scored) - abnormal, "frame"),
        sum(value is False for value in said.values()),
    )
    if unseen:
        log.warning(
            "%s of the run without a verdict counted as normal: those that are not make the threshold higher.",
            counted(unseen, "flagged frame"),
        )
    return scored


def _named(identifiers: Identifiers, info: ManifestInfo | None) -> Callable[[str | None], str | None]:
    """What makes of a site, as a run's manifest names it, what the calibration is to name it."""
    if identifiers.mode == "none":
        return identifiers.uid
    if info is None or "site" not in info.names:
        raise UsageError(
            "A calibration from reviews knows the institutions that the run's manifest tells.",
            f"--identifiers {identifiers.mode}, and a manifest that is hidden, gone, or has no site",
            "Leave --identifiers out, or index with --headers and scan that manifest.",
        )
    naming = naming_of(info)
    if naming.mode == "plain":
        return identifiers.uid
    if naming != identifiers.naming:
        raise UsageError(
            "What is hashed stays hashed, by its own key.",
            f"--identifiers {identifiers.mode}"
            + (" with another key" if identifiers.mode == "hashed" else "")
            + f", and {info.uri}, indexed with --identifiers hashed",
            "Give --identifiers hashed and the key of that index, or leave --identifiers out.",
        )
    return lambda site: site


def _rows(
    table: ScoreTable, model_id: str, beside: ObjectColumns, share: float, reviewed_objects: pa.Array
) -> Iterator[dict[str, Any]]:
    """The scored rows of a model with their study, series and header: of the drawn studies, and of reviewed objects."""
    for batch in table.batches(list(dict.fromkeys([*_READ, *_OF_TABLE]))):
        for _, rows in by_model(batch, {model_id: None}):
            group = places_in(rows, "study").dictionary_encode()
            drawn = np.array([_place(name) < share for name in group.dictionary.to_pylist()])[group.indices.to_numpy()]
            columns = {name: rows[name] for name in rows.schema.names} | {
                "group": group,
                "series": places_in(rows, "series"),
                **{name: beside.of(name, rows["object_id"]) for name in beside.names},
            }
            kept = pc.or_(pa.array(drawn), pc.is_in(rows["object_id"], reviewed_objects))
            yield from pa.table(columns).filter(kept).to_pylist()


def _keys(frames: pd.DataFrame) -> list[tuple[int, int]]:
    """Object and frame of each row."""
    return list(zip(frames["object_id"].tolist(), frames["frame"].tolist(), strict=True))


def _place(name: str) -> float:
    """A place in [0, 1) that follows from a name alone."""
    return zlib.crc32(name.encode()) / 2**32
