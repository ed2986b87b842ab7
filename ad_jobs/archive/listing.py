"""An archive listed once, into a manifest: everything after it works on the same objects under the same ids."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.archive.header_options import HeaderOptions
from ad_jobs.archive.manifest import row_bytes
from ad_jobs.archive.manifest_record import (
    RECORD,
    ManifestInfo,
    Part,
    Record,
    changed_since,
    manifest_info,
    part_name,
    record_bytes,
    refusal,
    stored_manifest,
    unwritable,
)
from ad_jobs.archive.sources import SourceObject, is_list, open_source
from ad_jobs.errors import UsageError
from ad_jobs.schema import DEMOGRAPHICS, IDENTIFYING, MANIFEST, MANIFEST_HEADERS
from cluster import storage

log = logging.getLogger("retroscan.index")

PART_ROWS = 1_000_000
# Rows in memory, and in a row group; divides PART_ROWS.
BATCH_ROWS = 50_000


def write_manifest(
    source: str,
    out: str,
    *,
    headers: HeaderOptions | None = None,
    part_rows: int = PART_ROWS,
    batch_rows: int = BATCH_ROWS,
) -> ManifestInfo:
    """Write the manifest of `source` into the folder `out`, and return it.

    The parts depend on the archive alone: the same objects give the same bytes. Indexing an unchanged source
    again changes nothing; a manifest is never replaced by another, since runs refer to it.

    Args:
        source: A folder, `s3://bucket/prefix`, a manifest, or a list of images.
        out: A folder, local or S3, outside `source`.
        headers: Also read the headers, the first bytes of each object, into columns; how.
        part_rows: Rows of a part; with headers a batch is a part.
        batch_rows: Rows in memory, and in a row group; divides `part_rows`.

    Raises:
        UsageError: The source cannot be listed, or `out` is unusable or holds another manifest.
        JobError: The manifest could not be written, or the store did not deliver the headers.
        ClusterError: The cluster that is to read headers does not work.
    """
    try:
        storage.check_bucket(out)
        existing = _existing(source, out, headers)
    except storage.StorageError as error:
        raise refusal(error) from error
    with tempfile.TemporaryDirectory(prefix="retroscan-index-") as folder:
        staging = Path(folder)
        listing = open_source(source)
        parts, digest = _stage(listing.objects, staging, part_rows, batch_rows)
        if headers is not None:
            # The decoders stand behind it, which a listing does without.
            from ad_jobs.archive.header_index import write_header_parts

            parts, digest = write_header_parts([staging / part.name for part in parts], out, headers, existing)
        if existing is not None:
            if existing.digest != digest:
                raise changed_since(existing)
            return existing
        record = Record(
            source=source,
            root=listing.root,
            objects=sum(part.rows for part in parts),
            digest=digest,
            headers=headers is not None,
            columns=_columns(headers),
            identifiers=None if headers is None else headers.identifiers.mode,
            parts=tuple(parts),
            left_out=dict(sorted(listing.left_out.items())),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        try:
            if headers is None:
                for part in parts:
                    storage.upload_file(staging / part.name, storage.join(out, part.name))
            _finish(record, out)
        except storage.StorageError as error:
            raise unwritable(error) from error
    return manifest_info(out)


def _columns(headers: HeaderOptions | None) -> tuple[str, ...]:
    return tuple(MANIFEST.names) if headers is None else headers.columns


def _existing(source: str, out: str, headers: HeaderOptions | None) -> ManifestInfo | None:
    """The manifest of the same source and columns that is in `out` already, if any."""
    if not is_list(source) and (out + "/").startswith(source.removesuffix("/") + "/"):
        raise UsageError(
            "--out lies outside of SOURCE: the manifest would be listed as a part of the archive.",
            f"{out} in {source}",
            "Name another folder.",
        )
    existing = stored_manifest(out)
    if existing is None:
        if _of_another_kind(storage.join(out, RECORD)):
            raise UsageError(f"--out holds a {RECORD} of another kind.", out, "Name a new folder.")
        return None
    mode = None if headers is None else headers.identifiers.mode
    if (existing.source, existing.names, existing.identifiers) != (source, _columns(headers), mode):
        raise UsageError(
            "A manifest is not rewritten, because runs refer to it.",
            f"{out}, a manifest of {existing.source} {_told(existing)}",
            "Index into a new folder.",
        )
    return existing


def _of_another_kind(uri: str) -> bool:
    """Whether a record that is no manifest's is somebody's: one that is no whole JSON was cut off in writing."""
    try:
        json.loads(storage.read_bytes(uri))
    except storage.NotFound:
        return False
    except (ValueError, RecursionError):
        log.warning("%s is not whole: written again.", uri)
        return False
    return True


def _told(existing: ManifestInfo) -> str:
    """With which options a manifest was made, as far as they make its columns."""
    if not existing.headers:
        return "without headers"
    hidden = IDENTIFYING if existing.identifiers == "none" else ()
    if existing.identifiers is None or {*MANIFEST_HEADERS.names} - {*existing.names, *hidden}:
        return "with headers, by an earlier version"
    told = "with demographics" if set(DEMOGRAPHICS.names) <= set(existing.names) else "without demographics"
    return f"with headers, {told}, identifiers {existing.identifiers}"


def _finish(record: Record, out: str) -> None:
    """Write the record, last, where nothing lies any more that is not of it."""
    # An interrupted index of a larger source may have left more parts.
    for number in itertools.count(len(record.parts)):
        left = storage.join(out, part_name(number))
        if not storage.exists(left):
            break
        storage.delete(left)
    storage.write_bytes(storage.join(out, RECORD), record_bytes(record))


def _stage(objects: Iterable[SourceObject], folder: Path, part_rows: int, batch_rows: int) -> tuple[list[Part], str]:
    """Write the listing into a local folder: its parts, and the digest over all rows."""
    digest = hashlib.sha256()
    parts: list[Part] = []
    rows = _rows(objects, batch_rows)
    for first in rows:
        path = folder / part_name(len(parts))
        count = 0
        with pq.ParquetWriter(path, MANIFEST, compression="zstd") as writer:
            for batch in itertools.chain([first], itertools.islice(rows, part_rows // batch_rows - 1)):
                for row in batch:
                    digest.update(row_bytes(row))
                columns = [
                    pa.array(values, field.type)
                    for values, field in zip(zip(*batch, strict=True), MANIFEST, strict=True)
                ]
                writer.write_table(pa.table(columns, schema=MANIFEST), row_group_size=batch_rows)
                count += len(batch)
        with path.open("rb") as file:
            parts.append(Part(name=path.name, rows=count, sha256=hashlib.file_digest(file, "sha256").hexdigest()))
    return parts, digest.hexdigest()


def _rows(objects: Iterable[SourceObject], batch_rows: int) -> Iterator[list[tuple[Any, ...]]]:
    """The manifest's rows in batches, numbered from 0."""
    numbered = enumerate(objects)
    while batch := list(itertools.islice(numbered, batch_rows)):
        yield [(number, found.uri, found.bytes, found.etag, found.modified) for number, found in batch]
