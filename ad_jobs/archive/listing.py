"""An archive listed once, into a manifest: everything after it works on the same objects under the same ids."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.archive.headers import header_columns
from ad_jobs.archive.manifest import row_bytes
from ad_jobs.archive.manifest_record import (
    RECORD,
    ManifestInfo,
    Part,
    Record,
    manifest_info,
    part_name,
    record_bytes,
    refusal,
    stored_manifest,
)
from ad_jobs.archive.sources import SourceObject, is_list, open_source
from ad_jobs.errors import JobError, UsageError
from ad_jobs.schema import MANIFEST, MANIFEST_HEADERS
from cluster import storage

log = logging.getLogger("retroscan.index")

PART_ROWS = 1_000_000
# Rows in memory, and in a row group; divides PART_ROWS.
BATCH_ROWS = 50_000
HEADER_THREADS = 32

_HEADER_NAMES = [name for name in MANIFEST_HEADERS.names if name not in MANIFEST.names]


def write_manifest(
    source: str, out: str, *, headers: bool = False, part_rows: int = PART_ROWS, batch_rows: int = BATCH_ROWS
) -> ManifestInfo:
    """Write the manifest of `source` into the folder `out`, and return it.

    The parts depend on the archive alone: the same objects give the same bytes. Indexing an unchanged source
    again changes nothing; a manifest is never replaced by another, since runs refer to it.

    Args:
        source: A folder, `s3://bucket/prefix`, a manifest, or a list of images.
        out: A folder, local or S3, outside `source`.
        headers: Also read the DICOM headers, the first bytes of each object, into columns.
        part_rows: Rows of a part.
        batch_rows: Rows in memory, and in a row group; divides `part_rows`.

    Raises:
        UsageError: The source cannot be listed, or `out` is unusable or holds another manifest.
        JobError: The manifest could not be written.
    """
    try:
        storage.check_bucket(out)
        existing = _existing(source, out, headers)
    except storage.StorageError as error:
        raise refusal(error) from error
    with tempfile.TemporaryDirectory(prefix="retroscan-index-") as folder:
        staging = Path(folder)
        listing = open_source(source)
        parts, digest = _stage(listing.objects, staging, headers, part_rows, batch_rows)
        if existing is not None:
            if existing.digest != digest:
                raise UsageError(
                    "A manifest is not rewritten, because runs refer to it.",
                    f"{out} of {existing.created}, since when the source has changed",
                    "Index into a new folder.",
                )
            return existing
        record = Record(
            source=source,
            root=listing.root,
            objects=sum(part.rows for part in parts),
            digest=digest,
            headers=headers,
            parts=tuple(parts),
            left_out=dict(sorted(listing.left_out.items())),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        try:
            _publish(staging, record, out)
        except storage.StorageError as error:
            raise JobError(f"The manifest cannot be written: {error}.", "Check that --out is writable.") from error
    return manifest_info(out)


def _existing(source: str, out: str, headers: bool) -> ManifestInfo | None:
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
    if existing.source != source or existing.headers != headers:
        kind = "with" if existing.headers else "without"
        raise UsageError(
            "A manifest is not rewritten, because runs refer to it.",
            f"{out}, a manifest of {existing.source} {kind} headers",
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


def _publish(staging: Path, record: Record, out: str) -> None:
    for part in record.parts:
        storage.upload_file(staging / part.name, storage.join(out, part.name))
    # An interrupted index of a larger source may have left more parts.
    for number in itertools.count(len(record.parts)):
        left = storage.join(out, part_name(number))
        if not storage.exists(left):
            break
        storage.delete(left)
    storage.write_bytes(storage.join(out, RECORD), record_bytes(record))


def _stage(
    objects: Iterable[SourceObject], folder: Path, headers: bool, part_rows: int, batch_rows: int
) -> tuple[list[Part], str]:
    """Write the parts into a local folder: the parts, and the digest over all rows."""
    schema = MANIFEST_HEADERS if headers else MANIFEST
    digest = hashlib.sha256()
    parts: list[Part] = []
    rows = _rows(objects, headers, batch_rows)
    for first in rows:
        path = folder / part_name(len(parts))
        count = 0
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in itertools.chain([first], itertools.islice(rows, part_rows // batch_rows - 1)):
                for row in batch:
                    digest.update(row_bytes(row))
                columns = [
                    pa.array(values, field.type) for values, field in zip(zip(*batch, strict=True), schema, strict=True)
                ]
                writer.write_table(pa.table(columns, schema=schema), row_group_size=batch_rows)
                count += len(batch)
        with path.open("rb") as file:
            parts.append(Part(name=path.name, rows=count, sha256=hashlib.file_digest(file, "sha256").hexdigest()))
    return parts, digest.hexdigest()


def _rows(objects: Iterable[SourceObject], headers: bool, batch_rows: int) -> Iterator[list[tuple[Any, ...]]]:
    """The manifest's rows in batches, numbered from 0."""
    numbered = enumerate(objects)
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        while batch := list(itertools.islice(numbered, batch_rows)):
            rows: list[tuple[Any, ...]] = [(i, o.uri, o.bytes, o.etag, o.modified) for i, o in batch]
            if headers:
                read = pool.map(header_columns, *zip(*((o.uri, o.bytes, o.etag) for _, o in batch), strict=True))
                rows = [
                    (*row, *(found.get(name) for name in _HEADER_NAMES)) for row, found in zip(rows, read, strict=True)
                ]
            yield rows
