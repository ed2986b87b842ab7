"""The objects of selected frames, fetched again as a scan fetches them, and held against what was scanned."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ad_jobs.archive.fetching import Source, fetch_all
from ad_jobs.exporting.tally import Refusal

# Half of a scan stands behind it, and few runs need it.
if TYPE_CHECKING:
    from ad_jobs.verifying.run_archive import RunArchive

# Objects that are on their way at once.
_CHUNK = 256

Row = dict[str, Any]


class Refused(Exception):
    """A frame that is not handed on, and why: a Refusal or an ErrorCode."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Original(NamedTuple):
    """Rows of one object, one after the other; and its bytes, or why none of them is handed on."""

    rows: list[Row]
    data: bytes
    refused: str | None = None


def originals(
    rows: Iterable[Row], archive: RunArchive | None, max_bytes: int, before: Callable[[Row], str | None]
) -> Iterator[Original]:
    """Each object of the rows, in their order; every row is in one of them.

    Args:
        rows: by object; one that comes back after another is fetched anew.
        archive: of a run that hides what its objects are called.
        max_bytes: of an object.
        before: why a row is refused without fetching its object, None where it is not.

    Raises:
        JobError: the store refuses its credentials, or is away for long.
    """
    objects = (list(group) for _, group in itertools.groupby(rows, lambda row: int(row["object_id"])))
    while chunk := list(itertools.islice(objects, _CHUNK)):
        judged = [[(row, before(row)) for row in of_object] for of_object in chunk]
        wanted = [[row for row, reason in of_object if reason is None] for of_object in judged]
        fetched = fetch_all(_sources([kept for kept in wanted if kept], archive), max_bytes)
        for of_object, kept in zip(judged, wanted, strict=True):
            yield from (Original([row], b"", reason) for row, reason in of_object if reason is not None)
            if not kept:
                continue
            _, data, _, error, *_ = next(fetched)
            if data is None:
                assert error is not None
                yield Original(kept, b"", str(error.code))
            elif hashlib.sha256(data).hexdigest() != kept[0]["content_sha256"]:
                yield Original(kept, b"", Refusal.CONTENT_CHANGED)
            else:
                yield Original(kept, data)


def _sources(wanted: list[list[Row]], archive: RunArchive | None) -> list[Source]:
    """Where the objects lie; what a manifest does not have keeps the name in its row, and is not found."""
    ids = [int(rows[0]["object_id"]) for rows in wanted]
    known = {} if archive is None else {source.object_id: source for source in archive.sources(set(ids))}
    return [known.get(i) or Source(i, str(rows[0]["uri"])) for i, rows in zip(ids, wanted, strict=True)]
