"""A manifest on disk: what there is to scan, listed once. Parquet parts, and `manifest.json`, written last.

`object_id` is the row's position over all parts, in URI order, so rows and ids can be used for one another.

Anyone who writes to an archive can put files of these names into it.
So a folder is taken for a manifest only if nothing else lies there, its record is whole, and all of its objects lie
below the folder that it was made of; whoever names it `manifest:URI` says so himself.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from ad_jobs.archive.condition import rows_where
from ad_jobs.errors import JobError, UsageError
from ad_jobs.schema import MANIFEST, MANIFEST_HEADERS
from ad_jobs.values import MANIFEST as NAMED
from ad_jobs.values import source_place
from cluster import storage
from cluster.storage import uris

log = logging.getLogger("retroscan.manifest")

RECORD = "manifest.json"
# Of URIs looked at in one go.
BATCH_ROWS = 65_536
# What older versions of `index` did not yet write down of a list.
_LISTS = (".csv", ".parquet")


class Part(BaseModel):
    """One Parquet file of a manifest: its name in the folder, its rows, and its content's sha256."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    sha256: str


class Record(BaseModel):
    """The content of `manifest.json`, beside its `seal`: `created` is an ISO time in UTC."""

    model_config = ConfigDict(frozen=True)

    source: str
    # The folder or prefix that all objects lie below; None for those of a list, which may lie anywhere.
    root: str | None
    objects: int
    # A sha256 over all rows.
    digest: str
    headers: bool
    parts: tuple[Part, ...]
    # What lies below the source and is no object, counted by why (`storage.LeftOut`).
    left_out: dict[str, int] = {}
    created: str

    @model_validator(mode="after")
    def _of_one_piece(self) -> Self:
        if [part.name for part in self.parts] != [part_name(number) for number in range(len(self.parts))]:
            raise ValueError("its parts are not numbered in order")
        if self.objects != sum(part.rows for part in self.parts):
            raise ValueError("its parts do not have as many rows as there are objects")
        return self


class ManifestInfo(Record):
    """A finished manifest: what its `manifest.json` says, and the folder it lies in."""

    uri: str


def part_name(number: int) -> str:
    """The file name of a manifest's `number`-th part."""
    return f"part-{number:05d}.parquet"


def row_bytes(row: tuple[Any, ...]) -> bytes:
    """A row as the manifest's digest takes it in."""
    return _ROW.encode(row).encode() + b"\n"


def _json(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"A manifest holds no {type(value).__name__}")


_ROW = json.JSONEncoder(default=_json, separators=(",", ":"))


def find_manifest(source: str) -> ManifestInfo | None:
    """The manifest that a SOURCE is: one that is named `manifest:URI`, or a folder that holds nothing else; or None.

    Raises:
        UsageError: None is there, although one is named; or a folder is one of objects that may lie anywhere.
        StorageError: The store refuses or does not answer.
    """
    if source.startswith(NAMED):
        return manifest_info(source)
    found = stored_manifest(source)
    if found is None:
        return None
    if storage.holds_other(source, {RECORD, *(part.name for part in found.parts)}):
        log.warning(
            "%s holds a %s among other objects, and is taken for an archive. If it is a manifest, name it %s%s.",
            source,
            RECORD,
            NAMED,
            source,
        )
        return None
    if found.root is None:
        raise UsageError(
            "A manifest whose objects lie below no one folder is named as such.",
            f"{source}, a manifest of {found.source}",
            f"Write {NAMED}{source} if you trust who made it.",
        )
    return found


def stored_manifest(uri: str) -> ManifestInfo | None:
    """The finished manifest in the folder `uri`, whatever else lies there; None if there is none.

    Raises:
        StorageError: The store refuses or does not answer.
    """
    try:
        content = json.loads(storage.read_bytes(storage.join(uri, RECORD)))
        if not isinstance(content, dict):
            return None
        seal = content.pop("seal", None)
        if seal is None and "root" not in content:
            content["root"] = _older_root(str(content.get("source")))
        elif seal != _seal(content):
            return None
        return ManifestInfo(uri=uri, **content)
    except (storage.NotFound, ValueError, RecursionError, TypeError):
        return None


def record_bytes(record: Record) -> bytes:
    """What is written as `manifest.json`: the record, and its seal."""
    content = record.model_dump(mode="json")
    return (json.dumps({**content, "seal": _seal(content)}, indent=2) + "\n").encode()


def _seal(content: dict[str, Any]) -> str:
    """A sha256 over what a record says."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _older_root(source: str) -> str | None:
    """The root of a manifest by a version that did not record it."""
    return None if source.lower().endswith(_LISTS) else source


def manifest_info(source: str) -> ManifestInfo:
    """The finished manifest in a folder, with or without `manifest:` before it.

    Raises:
        UsageError: There is none, or it cannot be read.
    """
    uri = source.removeprefix(NAMED)
    try:
        found = stored_manifest(uri)
    except storage.StorageError as error:
        raise refusal(error) from error
    if found is None:
        raise UsageError(
            f"A manifest is a folder with a {RECORD}, which is written last and not changed.",
            uri,
            "Make one with: retroscan index SOURCE --out MANIFEST.",
        )
    return found


def read_parts(info: ManifestInfo, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The tables of a manifest's parts, in order, one at a time.

    Raises:
        JobError: A part is missing or is not what `manifest.json` says.
        UsageError: It names objects outside of the manifest's root.
    """
    for part in info.parts:
        data = pa.BufferReader(_read_part(info, part))
        yield pq.read_table(data, columns=None if columns is None else list(columns))


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
        UsageError: No manifest, no such column, or a condition that is no SQL, selects nothing, or selects
            other rows each time.
        JobError: A part is missing or damaged.
    """
    info = manifest_info(source_place(uri))
    names = (MANIFEST_HEADERS if info.headers else MANIFEST).names
    if missing := sorted(set(columns or ()) - set(names)):
        raise UsageError(
            f"Columns of this manifest are {', '.join(names)}.",
            ", ".join(missing),
            "DICOM columns need: retroscan index --headers.",
        )
    # The condition may name columns that are not asked for.
    table = pa.concat_tables(read_parts(info, columns if where is None else None))
    if where is not None:
        table = table.take(_select(table, where))
    return table if columns is None else table.select(list(columns))


def _select(table: pa.Table, where: str) -> pa.Array:
    """The ids, ascending, of the rows that meet an SQL condition."""
    names = f"Columns: {', '.join(table.column_names)}."
    if "modality" not in table.column_names:
        names += " DICOM columns need: retroscan index --headers."
    first, second = (
        rows_where(table, "manifest", where, columns=["object_id"], order=["object_id"], help=names, option="--where")[
            "object_id"
        ]
        for _ in range(2)
    )
    if not first.equals(second):
        raise UsageError(
            "--where must select the same rows every time, or a resumed scan would not be the same scan.",
            where,
            "A sample that stays: object_id % 100 = 0.",
        )
    if not len(first):
        raise UsageError("--where must select at least one object.", f"{where} (0 of {table.num_rows})", names)
    return first.combine_chunks()


def refusal(error: storage.StorageError) -> UsageError:
    """What to tell a user whose source or folder the store does not give: the rule, the value, the remedy."""
    s3 = storage.is_s3(error.uri)
    if isinstance(error, storage.NotFound):
        rule = "The bucket and prefix must exist." if s3 else "The file or folder must exist."
        remedy = "Check the spelling, and AWS_ENDPOINT_URL if this is not AWS." if s3 else "Check the spelling."
    elif isinstance(error, storage.AccessDenied):
        rule = "These credentials must be allowed to list and read it." if s3 else "It must be readable."
        remedy = (
            "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and the bucket's policy."
            if s3
            else "Check its permissions, and those of the folders on the way."
        )
    elif isinstance(error, storage.Unreachable):
        rule = "The store must answer."
        remedy = "Check AWS_ENDPOINT_URL and the network." if s3 else "Check the disk or the network mount."
    else:
        rule = "The store must accept the request."
        remedy = "Check the URI and the AWS settings." if s3 else "Check the path."
    return UsageError(rule, f"{error.uri} ({error.detail})", remedy)
