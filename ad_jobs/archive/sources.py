"""What a verb may be pointed at: a folder, `s3://bucket/prefix`, a manifest, or a CSV/Parquet list of images.

All four give the same thing, the objects sorted by URI. `index`, `fit` and `calibrate` read them here alone,
and so see the same objects in the same order.
A ZIP, TAR or .gz is taken for the members in it (`containers`), in a folder or as the source itself.
What lies in a folder and is no object is counted, and told; it never ends a listing.
"""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.archive import objects
from ad_jobs.archive.containers import members_of_source, with_members
from ad_jobs.archive.containers_names import kind_of
from ad_jobs.archive.manifest import read_parts
from ad_jobs.archive.manifest_record import RECORD, ManifestInfo, find_manifest, is_own, part_name, refusal
from ad_jobs.errors import ImageError, UsageError
from ad_jobs.values import MANIFEST as NAMED
from cluster import storage
from cluster.storage.uris import is_foreign

log = logging.getLogger("retroscan.sources")

STAT_THREADS = 32
# Queued at a time.
STAT_NAMES = 4_096

_FORMS = (
    "A SOURCE is a folder, s3://bucket/prefix, a ZIP or TAR, a manifest, or a .csv or .parquet with a column image."
)
_LISTS = (".csv", ".parquet")


class SourceObject(NamedTuple):
    """One object of a source; `bytes` is None if a list names it and the store does not have it.

    `group` keeps what belongs together (a patient, a part) on one side of a split; only lists know it.
    `within` is the folder of its archive, which no link may lead out of; lists have none.
    """

    uri: str
    bytes: int | None
    etag: str | None
    modified: datetime | None
    group: str | None
    within: str | None = None


class Listing(NamedTuple):
    """A source opened: the folder that its objects lie below (None for a list), and the objects, to be taken once.

    `left_out` is filled when the last of them has been taken.
    """

    root: str | None
    objects: Iterator[SourceObject]
    left_out: Counter[str]


def read_source(source: str) -> list[SourceObject]:
    """All objects of a source, sorted by URI, each once.

    Raises:
        UsageError: The source is missing, refused, unreachable, empty, or a list that cannot be used.
        JobError: The source is a manifest with a damaged part.
    """
    return list(open_source(source).objects)


def open_source(source: str) -> Listing:
    """The objects of a source one by one, in bounded memory unless it is a list.

    Raises as `read_source` does, here or when an object is asked for.
    """
    try:
        if is_list(source):
            return Listing(None, _refusing(_list_objects(source)), Counter())
        info = find_manifest(source)
    except storage.StorageError as error:
        raise refusal(error) from error
    if info is not None:
        return Listing(info.root, _refusing(_manifest_objects(info)), Counter(info.left_out))
    left_out: Counter[str] = Counter()
    try:
        container = _container(source)
    except storage.StorageError as error:
        raise refusal(error) from error
    if container is not None:
        found = _members(container, left_out)
        return Listing(storage.parent(source), _refusing(found), left_out)
    return Listing(source, _refusing(_folder_objects(source, left_out)), left_out)


def _container(source: str) -> storage.ObjectInfo | None:
    """The container that a source is; None for a folder, whatever its name."""
    if kind_of(source) is None or not storage.exists(source):
        return None
    return storage.stat(source)


def _members(container: storage.ObjectInfo, left_out: Counter[str]) -> Iterator[SourceObject]:
    counted: Counter[storage.LeftOut] = Counter()
    within = storage.parent(container.uri)
    yield from _objects(container.uri, members_of_source(container, counted, within), within, counted, left_out)


def _refusing(objects: Iterator[SourceObject]) -> Iterator[SourceObject]:
    try:
        yield from objects
    except storage.StorageError as error:
        raise refusal(error) from error


def _manifest_objects(info: ManifestInfo) -> Iterator[SourceObject]:
    for table in read_parts(info, ["uri", "bytes", "etag", "modified"]):
        for row in table.to_pylist():
            yield SourceObject(**row, group=None, within=info.root)


def is_list(source: str) -> bool:
    """True if the source is a file whose name says CSV or Parquet.

    Raises:
        StorageError: The store refuses or does not answer.
    """
    return not source.startswith(NAMED) and source.lower().endswith(_LISTS) and storage.exists(source)


def _folder_objects(source: str, left_out: Counter[str]) -> Iterator[SourceObject]:
    if _is_unfinished_manifest(source):
        raise UsageError(
            f"A manifest is finished when its {RECORD} is written.",
            f"{source} (with {part_name(0)}, without a readable {RECORD})",
            "Run its index again: it continues.",
        )
    counted: Counter[storage.LeftOut] = Counter()
    found = with_members(storage.list_objects(source, counted), counted, source)
    try:
        yield from _objects(source, found, source, counted, left_out)
    except storage.NotFound as error:
        if storage.exists(source):
            raise UsageError(
                _FORMS, f"{source} (a single file)", "For single images there is: retroscan score MODEL IMAGE..."
            ) from error
        raise


def _objects(
    source: str,
    found: Iterator[storage.ObjectInfo],
    within: str,
    counted: Counter[storage.LeftOut],
    left_out: Counter[str],
) -> Iterator[SourceObject]:
    """What was found; then what was left out is told. Raises UsageError where nothing was found."""
    info = None
    for info in found:
        yield SourceObject(*info, group=None, within=within)
    for kind, count in sorted(counted.items()):
        log.warning("listing: %s.", told(kind, count))
        left_out[kind.value] += count
    if info is None:
        raise UsageError("A SOURCE holds at least one object.", source, "Check the folder, prefix or container.")


def _is_unfinished_manifest(source: str) -> bool:
    """Whether a folder holds nothing but the parts of a manifest; an archive may hold a file of such a name."""
    if not storage.exists(storage.join(source, part_name(0))):
        return False
    return not storage.holds_other(source, is_own)


_TOLD = {
    storage.LeftOut.LINK: ("link was not followed", "links were not followed"),
    storage.LeftOut.SPECIAL: ("pipe, socket or device is no object", "pipes, sockets and devices are no objects"),
    storage.LeftOut.UNREADABLE: (
        "folder or file may not be read and was left out",
        "folders and files may not be read and were left out",
    ),
    storage.LeftOut.TOO_LONG: (
        "name is longer than the system takes and was left out",
        "names are longer than the system takes and were left out",
    ),
    storage.LeftOut.EMPTY_CONTAINER: ("container has no file in it", "containers have no file in them"),
    storage.LeftOut.REPLACED: (
        "file was left out for another of the same name",
        "files were left out for others of the same names",
    ),
}


def told(kind: storage.LeftOut, count: int) -> str:
    """What was left out of a listing, in words.

    >>> told(storage.LeftOut.LINK, 3)
    '3 links were not followed'
    """
    one, several = _TOLD[kind]
    return f"{count:,} {one if count == 1 else several}"


# --- Lists


def _list_objects(uri: str) -> Iterator[SourceObject]:
    groups: dict[str, str | None] = {}
    for image, group in read_image_list(uri):
        resolved = resolve(uri, image)
        if resolved in groups:
            raise UsageError(
                "A list names each image once.", f"{image} ({resolved}), twice in {uri}", "Remove one of the rows."
            )
        groups[resolved] = group
    names = sorted(groups)
    found = False
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        for first in range(0, len(names), STAT_NAMES):
            some = names[first : first + STAT_NAMES]
            for name, info in zip(some, pool.map(_stat, some), strict=True):
                if info is None:
                    yield SourceObject(name, None, None, None, groups[name])
                else:
                    found = True
                    yield SourceObject(name, info.bytes, info.etag, info.modified, groups[name])
    if not found:
        raise UsageError(
            "At least one image of a list must be readable.",
            f"{uri}: none of {len(names)}, first {names[0]}",
            "Relative paths count from the list's own folder.",
        )


def _stat(uri: str) -> storage.ObjectInfo | None:
    try:
        return objects.stat(uri)
    except (storage.KeysRefused, storage.Unreachable):
        raise
    except (storage.StorageError, ImageError):
        # Of this one: it is missing or refused, its container is damaged, or its name is one that no store takes.
        return None


def resolve(list_uri: str, image: str) -> str:
    """The URI of an entry of a list: absolute paths and s3:// as they are, others from the list's folder.

    Raises:
        UsageError: It is of another scheme, or wants the parent of an S3 prefix, which has none.
    """
    if is_foreign(image):
        raise UsageError("Images of a list are paths or s3:// URIs.", f"{image} in {list_uri}", "Copy them to S3.")
    if storage.is_s3(image):
        return image
    if image.startswith(("/", "file://")):
        return storage.absolute(image)
    if storage.is_s3(list_uri):
        if ".." in image.split("/"):
            raise UsageError(
                "Relative images of a list in S3 lie below the list's prefix: a key has no parent folder.",
                f"{image} in {list_uri}",
                "Write the whole s3:// URI.",
            )
        return storage.join(storage.parent(list_uri), image)
    return storage.absolute(storage.join(storage.parent(list_uri), image))


def read_image_list(uri: str) -> list[tuple[str, str | None]]:
    """The (image, group) pairs of a CSV or Parquet list, as written and in its own order.

    Other columns are ignored; an empty group is None.

    Raises:
        UsageError: No column image, an empty cell in it, no rows, or no such format.
        StorageError: The list cannot be read.
    """
    data = storage.read_bytes(uri)
    columns = _csv_columns(uri, data) if uri.lower().endswith(".csv") else _parquet_columns(uri, data)
    images = columns["image"]
    groups = columns.get("group", [None] * len(images))
    if not images:
        raise UsageError("A list holds at least one image.", uri, "Add rows below the header.")
    pairs = []
    for number, (image, group) in enumerate(zip(images, groups, strict=True), 1):
        if not image:
            raise UsageError(
                "Every row of a list names an image.", f"{uri}, row {number}: empty", "Fill it or remove the row."
            )
        pairs.append((image, group or None))
    return pairs


def _csv_columns(uri: str, data: bytes) -> dict[str, list[str | None]]:
    try:
        # Spreadsheets put a byte order mark before the first name.
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = next(rows, [])
        _require_image(uri, header)
        columns: dict[str, list[str | None]] = {name: [] for name in ("image", "group") if name in header}
        for row in rows:
            # A blank line.
            if not row:
                continue
            if len(row) != len(header):
                raise UsageError(
                    "Every row of a CSV list has as many cells as its header.",
                    f"{uri}, line {rows.line_num}: {len(row)} instead of {len(header)}",
                    'Put cells with commas in "quotes".',
                )
            for name, cells in columns.items():
                cells.append(row[header.index(name)])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError("A CSV list is comma-separated UTF-8 text.", f"{uri} ({error})", "Save it as such.") from error
    return columns


def _parquet_columns(uri: str, data: bytes) -> dict[str, list[str | None]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        header = file.schema_arrow.names
        _require_image(uri, header)
        table = file.read([name for name in ("image", "group") if name in header])
        return {name: table.column(name).cast(pa.string()).to_pylist() for name in table.column_names}
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(
            "A Parquet list has text in its column image.", f"{uri} ({error})", "Write it anew, or as CSV."
        ) from error


def _require_image(uri: str, header: list[str]) -> None:
    if header.count("image") != 1:
        raise UsageError(
            "A list has one column image.",
            f"{uri} with columns {', '.join(header) or '(none)'}",
            "Name the column of paths image, in the first line.",
        )
