"""What a reviewer asks of the loaded tables: pages of images or studies, one frame, its stack, counts to filter by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from ad_jobs.archive.sql import Database, Stream
from ad_jobs.errors import UsageError
from ad_jobs.reviewing.table import IMAGE
from ad_jobs.reviewing.verdicts import WORDS, Verdict
from ad_jobs.schema import VERDICTS

MAX_PAGE = 500
# Slices that are scrolled through at once.
MAX_STACK = 2000
# Values offered of a column.
MAX_FACET = 100
# Columns that one value is asked for, and by what name.
EQUAL = {
    "modality": "modality",
    "manufacturer": "manufacturer",
    "scanner": "scanner",
    "site": "site",
    "month": "study_month",
    "reason": "reason",
}
# What a blinded reader may not ask for: the answer tells what the detector said.
REVEALING = ("flagged", "score_min", "score_max", "p_max")
# Of frames: not read by oneself, read, read by others; or read so by anyone, or differently.
VERDICT_FILTERS = ("open", "mine", "others", *WORDS, "disputed")
_SEEN = pa.schema([VERDICTS.field(name) for name in ("object_id", "frame", "reviewer", "verdict")])


class Filter(NamedTuple):
    """Conditions of SQL over `images`, and their parameters."""

    where: str
    parameters: tuple[object, ...]


class Reader(NamedTuple):
    """Who asks, and whether others' verdicts are told only where there is one of this reader's own."""

    name: str
    blind: bool


def parse_filter(asked: Mapping[str, str], reader: Reader) -> Filter:
    """The filter in the parameters of a request; others, as the page's, are left alone.

    Raises:
        UsageError: a value that is none of its kind, or one that a blinded reader may not ask for.
    """
    revealing = [name for name in REVEALING if name in asked]
    if reader.blind and revealing:
        raise UsageError(
            "A blinded reading has no filter by what the detector said.", ", ".join(revealing), "Leave it out."
        )
    parts: list[tuple[str, tuple[object, ...]]] = []
    for name, column in EQUAL.items():
        if name in asked:
            # Some have no value: asked for as such.
            is_null = asked[name] == ""
            parts.append((f"{column} IS NULL", ()) if is_null else (f"{column} = ?", (asked[name],)))
    for name, condition in (("score_min", "score >= ?"), ("score_max", "score <= ?"), ("p_max", "p <= ?")):
        if name in asked:
            parts.append((condition, (_number(name, asked[name]),)))
    if "flagged" in asked:
        parts.append(("flagged" if _one_of("flagged", asked["flagged"], ("yes", "no")) == "yes" else "NOT flagged", ()))
    if "verdict" in asked:
        parts.append(_by_verdict(_one_of("verdict", asked["verdict"], VERDICT_FILTERS), reader))
    where = " AND ".join(f"({condition})" for condition, _ in parts) or "true"
    return Filter(where, tuple(value for _, values in parts for value in values))


def _by_verdict(asked: str, reader: Reader) -> tuple[str, tuple[object, ...]]:
    mine = "image IN (SELECT image FROM verdicts WHERE reviewer = ?)"
    # A blinded reader knows of others only where there is a verdict of one's own.
    known, knower = (f" AND {mine}", (reader.name,)) if reader.blind else ("", ())
    if asked in ("open", "mine"):
        return (mine if asked == "mine" else f"NOT {mine}"), (reader.name,)
    if asked == "others":
        return mine.replace("reviewer = ?", "reviewer <> ?"), (reader.name,)
    if asked == "disputed":
        different = "SELECT image FROM verdicts GROUP BY image HAVING count(DISTINCT verdict) > 1"
        return f"image IN ({different}){known}", knower
    return mine.replace("reviewer = ?", "verdict = ?") + known, (asked, *knower)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{name} is a finite number.", repr(text), "Give another.")
    return value


def _one_of(name: str, value: str, known: Iterable[str]) -> str:
    if value not in (words := tuple(known)):
        raise UsageError(f"{name} is one of {', '.join(words)}.", repr(value), "Give one of these.")
    return value


class Tables:
    """The loaded tables of a run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def know(self, verdicts: Iterable[Verdict]) -> None:
        """Take these standing verdicts for all there are."""
        rows = [{name: getattr(one, name) for name in _SEEN.names} for one in verdicts]
        self._database.execute(
            f"CREATE OR REPLACE TABLE verdicts AS SELECT {IMAGE} AS image, reviewer, verdict FROM standing",
            {"standing": Stream.of(pa.Table.from_pylist(rows, _SEEN))},
        )

    def images(self, model_id: str, found: Filter, after: int, limit: int) -> list[dict[str, Any]]:
        """Images that meet the filter, in order, behind the position `after`; `limit` of them at most."""
        sql = f"""
            SELECT * EXCLUDE (image) FROM images
            WHERE model_id = ? AND position > ? AND {found.where} ORDER BY position LIMIT ?
        """
        return self._database.rows(sql, [model_id, after, *found.parameters, limit])

    def count_images(self, model_id: str, found: Filter) -> int:
        """How many images meet the filter."""
        sql = f"SELECT count(*) AS n FROM images WHERE model_id = ? AND {found.where}"
        return int(self._database.rows(sql, [model_id, *found.parameters])[0]["n"])

    def studies(self, model_id: str, found: Filter, after: int, limit: int) -> list[dict[str, Any]]:
        """Studies with an image that meets the filter, as `images`."""
        sql = f"FROM studies WHERE {_STUDIES.format(where=found.where)} AND position > ? ORDER BY position LIMIT ?"
        return self._database.rows(sql, [model_id, model_id, *found.parameters, after, limit])

    def count_studies(self, model_id: str, found: Filter) -> int:
        """How many studies have an image that meets the filter."""
        sql = f"SELECT count(*) AS n FROM studies WHERE {_STUDIES.format(where=found.where)}"
        return int(self._database.rows(sql, [model_id, model_id, *found.parameters])[0]["n"])

    def frame(self, object_id: int, frame: int) -> list[dict[str, Any]]:
        """The rows of one frame, a model each; none of one that the run does not have."""
        return self._database.rows(
            "SELECT * EXCLUDE (content_hash, stack_hash) FROM frames WHERE object_id = ? AND frame = ?",
            [object_id, frame],
        )

    def stack(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The frames of a row's series, else of its study or folder, in order: MAX_STACK of them about it at most."""
        column = "series_uid" if row["series_uid"] is not None else '"group"'
        value = row["series_uid"] if row["series_uid"] is not None else row["group"]
        sql = f"""
            WITH stack AS (
                SELECT object_id, frame, status, row_number() OVER (ORDER BY slice NULLS LAST, object_id, frame) AS n
                FROM kept WHERE stack_hash = hash(?) AND {column} = ? AND model_id = ?)
            SELECT object_id, frame, status FROM stack
            WHERE abs(n - (SELECT n FROM stack WHERE object_id = ? AND frame = ?)) <= ? ORDER BY n
        """
        about = [row["object_id"], row["frame"], MAX_STACK // 2]
        return self._database.rows(sql, [value, value, row["model_id"], *about])

    def copies(self, row: Mapping[str, Any], most: int = 20) -> list[str]:
        """Where other objects with the same content lie, as the run names them; so many at most."""
        if row["content_sha256"] is None:
            return []
        sql = """
            SELECT uri FROM kept
            WHERE content_hash = hash(?) AND content_sha256 = ? AND frame = ? AND model_id = ? AND object_id <> ?
            ORDER BY object_id LIMIT ?
        """
        asked = [row["content_sha256"], row["content_sha256"], row["frame"], row["model_id"], row["object_id"], most]
        return [found["uri"] for found in self._database.rows(sql, asked)]

    def facets(self, model_id: str) -> dict[str, list[dict[str, Any]]]:
        """Of each column of EQUAL its values by how many images have them, the most frequent first."""
        found = {}
        for name, column in EQUAL.items():
            order = "value DESC" if name == "month" else "images DESC, value"
            sql = f"""
                SELECT {column} AS value, count(*) AS images FROM images WHERE model_id = ?
                GROUP BY 1 ORDER BY {order} LIMIT {MAX_FACET}
            """
            found[name] = self._database.rows(sql, [model_id])
        return found


_STUDIES = 'model_id = ? AND "group" IN (SELECT "group" FROM images WHERE model_id = ? AND {where})'
