"""The rows of a manifest on disk: what there is to scan, listed once, in Parquet parts (see `manifest_record`).

`object_id` is the row's position over all parts, in URI order, so rows and ids can be used for one another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.archive.condition import rows_where
from ad_jobs.archive.manifest_record import RECORD, ManifestInfo, Part, manifest_info
from ad_jobs.archive.marks import rows_marked
from ad_jobs.archive.sql import Stream
from ad_jobs.errors import JobError, UsageError
from ad_jobs.schema import DEMOGRAPHICS, IDENTIFYING, MANIFEST_HEADERS
from ad_jobs.values import source_place
from cluster import storage
from cluster.storage import uris

# Of URIs looked at in one go.
BATCH_ROWS = 65_536


def row_bytes(row: tuple[Any, ...]) -> bytes:
    """A row as the manifest's digest takes it in."""
    return _ROW.encode(row).encode() + b"\n"


def _json(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"A manifest holds no {type(value).__name__}")


_ROW = json.JSONEncoder(default=_json, separators=(",", ":"))


def read_parts(info: ManifestInfo, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a manifest, in order, a row group after the other: of one part all bytes are held, but no more rows.

    Raises:
        JobError: A part is missing or is not what `manifest.json` says.
        UsageError: It names objects outside of the manifest's root.
    """
    for part in info.parts:
        file = pq.ParquetFile(pa.BufferReader(_read_part(info, part)))
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=None if columns is None else list(columns))


def _read_part(info: ManifestInfo, part: Part) -> bytes:
    try:
        data = storage.patiently(lambda: storage.read_bytes(storage.join(info.uri, part.name)))
    except storage.StorageError as error:
        raise JobError(f"A part of the manifest cannot be read: {error}.", "Index the source again.") from error
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise JobError(
            f"{part.name} of the manifest {info.uri} is not what {RECORD} describes (sha256 differs).",
            "Index the source again, into a new folder.",
        )
    if info.root is not None:
        _check_below(info, part, data)
    return data


def _check_below(info: ManifestInfo, part: Part, data: bytes) -> None:
    root = str(info.root).removesuffix("/") + "/"
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(BATCH_ROWS, columns=["uri"]):
        names = batch["uri"]
        plain = pc.starts_with(names, root)
        if not uris.is_s3(root):
            # A path is not what it begins with where it goes up again; in a key that is a name.
            plain = pc.and_(plain, pc.invert(pc.match_substring(names, "/..")))
        for uri in names.filter(pc.invert(plain)).to_pylist():
            if not uris.lies_below(uri, root):
                raise UsageError(
                    "The objects of a manifest lie below the folder that it was made of.",
                    f"{info.uri}/{part.name}, which names {uri}; the folder is {root}",
                    "Index the source again, into a new folder.",
                )


class RowReader:
    """Some rows of a manifest at a time, without ever holding more than one of its parts."""

    def __init__(self, info: ManifestInfo) -> None:
        self._info = info
        # Ids are positions over all parts.
        self._ends = np.cumsum([part.rows for part in info.parts])
        self._opened: tuple[int, pq.ParquetFile] | None = None

    def rows(self, ids: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """The rows of one or more ids, which ascend.

        Raises:
            JobError: a part is missing or damaged.
        """
        of_part = np.searchsorted(self._ends, ids, side="right")
        return pa.concat_tables(
            self._rows_of_part(int(number), ids[of_part == number], columns) for number in np.unique(of_part)
        )

    def _rows_of_part(self, number: int, ids: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        file = self._open(number)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = self._ends[number] - self._info.parts[number].rows + np.cumsum([0, *sizes[:-1]])
        of_group = np.searchsorted(starts, ids, side="right") - 1
        tables = []
        for group in np.unique(of_group):
            table = file.read_row_group(int(group), columns=list(columns))
            tables.append(table.take(pa.array(ids[of_group == group] - starts[group])))
        return pa.concat_tables(tables)

    def _open(self, number: int) -> pq.ParquetFile:
        if self._opened is None or self._opened[0] != number:
            # Before the next is read: one of them is much.
            self._opened = None
            data = _read_part(self._info, self._info.parts[number])
            self._opened = number, pq.ParquetFile(pa.BufferReader(data))
        return self._opened[1]


def read_manifest(uri: str, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
    """The rows of a manifest in the order of `object_id`, as an Arrow table.

    Args:
        uri: The manifest's folder, with or without `manifest:` before it.
        columns: Which columns, in this order; all by default.
        where: An SQL condition over the manifest's columns (DuckDB's dialect); ids stay what they were.

    Raises:
        UsageError: No manifest, no such column, or a condition that is no SQL, or selects other rows each time.
        JobError: A part is missing or damaged.
    """
    info = manifest_info(source_place(uri))
    names = info.table_schema.names
    if missing := sorted(set(columns or ()) - set(names)):
        raise UsageError(f"Columns of this manifest are {', '.join(names)}.", ", ".join(missing), _lacking(info))
    wanted = names if columns is None else list(columns)
    tables: Iterable[pa.Table] = read_parts(info, wanted)
    if where is not None:
        meeting = np.zeros(info.objects, bool)
        meeting[_meeting(info, where).ids] = True
        tables = rows_marked(tables, meeting)
    empty = pa.schema([info.table_schema.field(name) for name in wanted]).empty_table()
    return pa.concat_tables([empty, *(table.select(wanted).cast(empty.schema) for table in tables)])


def _lacking(info: ManifestInfo) -> str:
    """How to come by the columns that the manifest does not have."""
    lacking = {*MANIFEST_HEADERS.names, *DEMOGRAPHICS.names} - set(info.names)
    hidden = lacking & set(IDENTIFYING) if info.identifiers == "none" else set()
    personal = lacking & set(DEMOGRAPHICS.names)
    needed = []
    if not info.headers:
        needed.append("DICOM columns need: retroscan index --headers.")
    elif lacking - hidden - personal:
        needed.append("An earlier version made it. More need: retroscan index --headers, into a new folder.")
    elif hidden:
        needed.append("UIDs and site need an index with --identifiers plain or hashed.")
    if info.headers and personal:
        needed.append(f"{' and '.join(sorted(personal))} need: retroscan index --headers --demographics.")
    return " ".join(needed)


class Selection(NamedTuple):
    """What of a manifest is to be scanned.

    `ids` int64, ascending; `undecided` counts the rows for which an SQL condition is NULL, neither met nor not: a
    column that it asks for has no value there, as those of the header in an object without one.
    Of the rows that meet it, `already` counts those that are left out because an earlier run has them; of those in
    `ids` that it has, `retried` failed there, and `widened` were out of a domain there that is wider now.
    """

    ids: NDArray[np.int64]
    undecided: int
    already: int = 0
    retried: int = 0
    widened: int = 0


def select(info: ManifestInfo, where: str) -> Selection:
    """The rows of a manifest that meet a condition, one or more.

    Raises:
        UsageError: The condition is no SQL, selects nothing, or selects other rows each time.
        JobError: A part is missing or damaged.
    """
    found = _meeting(info, where)
    if not len(found.ids):
        undecided = f"; it is NULL for {found.undecided}" if found.undecided else ""
        value = f"{where} (0 of {info.objects}{undecided})"
        raise UsageError("--where must select at least one object.", value, _help(info))
    return found


def _help(info: ManifestInfo) -> str:
    return f"Columns: {', '.join(info.table_schema.names)}. {_lacking(info)}".strip()


def _meeting(info: ManifestInfo, where: str) -> Selection:
    """As `select`, of which there may be none."""
    schema = info.table_schema

    def found(condition: str, *columns: str) -> pa.Table:
        columns = ("object_id", *columns)
        # A part at a time: all names of ten million objects take more than a gigabyte.
        batches = (batch for part in read_parts(info, schema.names) for batch in part.cast(schema).to_batches())
        rows = Stream(schema, batches)
        return rows_where(
            rows, "manifest", condition, columns=columns, order=["object_id"], help=_help(info), option="--where"
        )

    first = found(where)["object_id"]
    # A condition by now; its line is ended, as it may end in a comment.
    truth = f"CAST(({where}\n) AS BOOLEAN)"
    again = found(f"{truth} IS NOT FALSE", f"{truth} AS met")
    second = again.filter(pc.is_valid(again["met"]))["object_id"]
    if not first.equals(second):
        raise UsageError(
            "--where must select the same rows every time, or a resumed scan would not be the same scan.",
            where,
            "A sample that stays: object_id % 100 = 0.",
        )
    return Selection(first.to_numpy(), again["met"].null_count)
