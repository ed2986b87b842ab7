"""The verdicts of reviewers on a run's frames: RUN/reviews/*.parquet, schema.VERDICTS.

Rows are only ever added, each file whole and under a name of its own, so that reviewers at work at the same time lose
nothing of each other's.
A verdict is taken back by a later row of the same reviewer, `withdrawn`, that names it.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.errors import JobError, UsageError
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.schema import ACCEPTED, REJECTED, SUPPLEMENTED, VERDICTS, WITHDRAWN
from ad_jobs.values import place
from cluster import storage
from cluster.counting import counted

FOLDER = "reviews"
# What every row has.
_ALWAYS = ("verdict_id", "object_id", "frame", "uri", "reviewer", "verdict", "noted_at")
# What a reviewer may say of a frame.
WORDS = (ACCEPTED, REJECTED, SUPPLEMENTED)
READ_THREADS = 16
_SUFFIX = ".parquet"


class Verdict(NamedTuple):
    """A row of schema.VERDICTS, by its names."""

    verdict_id: str
    object_id: int
    frame: int
    content_sha256: str | None
    uri: str
    reviewer: str
    verdict: str
    withdraws: str | None
    decision_id: str | None
    flagged: bool | None
    noted_at: datetime

    @property
    def key(self) -> tuple[int, int]:
        """Object and frame."""
        return self.object_id, self.frame


def noted(row: Mapping[str, Any], reviewer: str, verdict: str, decision_id: str | None = None) -> Verdict:
    """What a reviewer says now of a frame, by its row: object_id, frame, content_sha256, uri, flagged.

    Raises:
        UsageError: the word is none of WORDS, or the reviewer has no name.
    """
    if verdict not in WORDS:
        raise UsageError(f"A verdict is {', '.join(WORDS)}.", repr(verdict), "Give one of these.")
    if not reviewer.strip():
        raise UsageError("A verdict is somebody's.", "no name of a reviewer", "Give one with --reviewer NAME.")
    known = (row["object_id"], row["frame"], row["content_sha256"], row["uri"])
    now = datetime.now(UTC)
    return Verdict(uuid.uuid4().hex, *known, reviewer, verdict, None, decision_id, row["flagged"], now)


def withdrawal(of: Verdict) -> Verdict:
    """The row by which its reviewer takes a verdict back, now."""
    return of._replace(
        verdict_id=uuid.uuid4().hex, verdict=WITHDRAWN, withdraws=of.verdict_id, noted_at=datetime.now(UTC)
    )


def add(run_uri: str, verdicts: Sequence[Verdict]) -> str:
    """Write verdicts as one file, whole, under a new name; it is on the disk, or in the store, when this returns.

    Raises:
        StorageError: it could not be written.
    """
    moment = max(verdict.noted_at for verdict in verdicts)
    uri = storage.join(run_uri, FOLDER, f"{moment:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex}{_SUFFIX}")
    body = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([one._asdict() for one in verdicts], VERDICTS), body, compression="zstd")
    storage.patiently(lambda: storage.write_bytes(uri, body.getvalue()))
    return uri


def files(run_uri: str) -> list[str]:
    """The names of the files with verdicts, in the order in which they were written."""
    folder = storage.join(run_uri, FOLDER)
    names = storage.list_names(folder) if storage.is_folder(folder) else []
    # One that is still being written begins with a dot.
    return [name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")]


def read_files(run_uri: str, names: Iterable[str]) -> list[Verdict]:
    """The rows of these files, withdrawn ones and withdrawals among them, in the order in which they were noted.

    Raises:
        JobError: a file is damaged, or is none of verdicts.
    """

    def rows(name: str) -> list[Verdict]:
        uri = storage.join(run_uri, FOLDER, name)
        try:
            table = pq.read_table(pa.BufferReader(storage.read_bytes(uri))).select(VERDICTS.names).cast(VERDICTS)
        except (pa.ArrowException, KeyError, OSError) as error:
            raise _damaged(uri, type(error).__name__) from error
        if any(table[name].null_count for name in _ALWAYS):
            raise _damaged(uri, "a value is missing")
        unknown = set(table["verdict"].unique().to_pylist()) - {*WORDS, WITHDRAWN}
        if unknown:
            raise _damaged(uri, f"{sorted(unknown)[0]!r} is no verdict")
        return [Verdict(**row) for row in table.to_pylist()]

    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = [verdict for of_file in pool.map(rows, names) for verdict in of_file]
    return sorted(found, key=lambda verdict: (verdict.noted_at, verdict.verdict_id))


def _damaged(uri: str, why: str) -> JobError:
    return JobError(f"{uri} cannot be read as verdicts: {why}.", f"Restore it, or move it out of {FOLDER}/.")


def check_content(verdicts: pd.DataFrame, table: ScoreTable) -> None:
    """Refuse verdicts on anything else than what the run scored.

    Raises:
        JobError: one is on other bytes, or on a frame that the run does not have.
    """
    key, content = ["object_id", "frame"], "content_sha256"
    ids = verdicts["object_id"].unique().tolist()
    scanned = table.of_objects(ids).select([*key, content]).to_pandas().drop_duplicates()
    beside = verdicts[[*key, content]].merge(scanned, "left", key, suffixes=("", "_scanned"), indicator="found")
    same = beside[content].fillna("") == beside[f"{content}_scanned"].fillna("")
    others = int((~same | (beside["found"] != "both")).sum())
    if others:
        raise JobError(
            f"{counted(others, 'verdict')} in {storage.join(table.uri, FOLDER)} not on what the run scored.",
            "Move the files that do not belong to this run out of that folder.",
        )


def standing(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Of each reviewer, object and frame the latest verdict that was not withdrawn, by object, frame and reviewer.

    `verdicts` are in the order in which they were noted. Nobody withdraws another's.
    """
    known = list(verdicts)
    gone = {(one.reviewer, one.withdraws) for one in known if one.verdict == WITHDRAWN}
    latest = {
        (*one.key, one.reviewer): one
        for one in known
        if one.verdict != WITHDRAWN and (one.reviewer, one.verdict_id) not in gone
    }
    return [latest[key] for key in sorted(latest)]


def read_verdicts(run: str) -> pd.DataFrame:
    """The standing verdicts of a run, schema.VERDICTS: one row for each reviewer, object and frame; ordered by these.

    Raises:
        UsageError: no place.
        JobError: a file of verdicts is damaged.
    """
    run_uri = place(run)
    found = standing(read_files(run_uri, files(run_uri)))
    table = pa.Table.from_pylist([one._asdict() for one in found], VERDICTS)
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
    return frame
