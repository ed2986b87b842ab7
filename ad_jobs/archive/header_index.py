"""The parts of a manifest with headers: each written when its headers are read, so that an index can go on.

A part that is there already is kept if it is of the same objects, by their names, sizes, etags and times, and was made
in the same way: an index that was interrupted reads no header twice, and leaves the bytes of one that was not.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.archive.containers_names import folder_of
from ad_jobs.archive.header_options import HeaderOptions
from ad_jobs.archive.headers import Listed, Read, header_reader
from ad_jobs.archive.manifest import row_bytes
from ad_jobs.archive.manifest_record import ManifestInfo, Part, changed_since, part_name, unwritable
from ad_jobs.archive.progress import Watch
from ad_jobs.schema import IDENTIFYING, MANIFEST
from cluster import storage

log = logging.getLogger("retroscan.index")


def write_header_parts(
    listed: Sequence[Path], out: str, options: HeaderOptions, finished: ManifestInfo | None
) -> tuple[list[Part], str]:
    """Write the listing's row groups into `out`, a part each, with their headers: the parts, and a digest of all rows.

    Args:
        listed: Parquet files of the columns of schema.MANIFEST, in order.
        out: The manifest's folder.
        options: How headers become columns.
        finished: The manifest that `out` holds, in which nothing may change.

    Raises:
        UsageError: The source has changed since the finished manifest.
        JobError: The store does not deliver, or does not take the parts.
        ClusterError: The cluster at `options.address` does not work.
    """
    files = [pq.ParquetFile(path) for path in listed]
    digest = hashlib.sha256()
    parts: list[Part] = []
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(sum(file.metadata.num_rows for file in files), "headers", log))
        read: Read | None = None
        for rows in _row_groups(files):
            uri = storage.join(out, part_name(len(parts)))
            data = _kept(uri, rows, options.schema)
            if data is not None:
                watch.advance(rows.num_rows)
            elif finished is not None:
                raise changed_since(finished)
            else:
                # A cluster is asked for when there is something to read.
                read = read or stack.enter_context(header_reader(options.demographics, options.address))
                data = _encoded(_with_headers(rows, read, options, watch))
                _write(uri, data)
            parts.append(Part(name=part_name(len(parts)), rows=rows.num_rows, sha256=hashlib.sha256(data).hexdigest()))
            for row in _rows(data):
                digest.update(row_bytes(row))
    return parts, digest.hexdigest()


def _row_groups(files: Sequence[pq.ParquetFile]) -> Iterator[pa.Table]:
    for file in files:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


def _kept(uri: str, rows: pa.Table, schema: pa.Schema) -> bytes | None:
    """The part that lies there already, if it is of these objects and of this schema."""
    try:
        data = storage.read_bytes(uri)
        found = pq.read_table(pa.BufferReader(data))
    except (storage.NotFound, pa.ArrowException, OSError):
        # Nothing, or nothing whole.
        return None
    made_so = found.schema.equals(schema) and found.schema.metadata == schema.metadata
    return data if made_so and found.select(MANIFEST.names).equals(rows) else None


def _with_headers(rows: pa.Table, read: Read, options: HeaderOptions, watch: Watch) -> pa.Table:
    uris = rows["uri"].to_pylist()
    columns: dict[str, list[object]] = {name: [] for name in options.columns if name not in MANIFEST.names}
    listed = list(map(Listed, uris, rows["bytes"].to_pylist(), rows["etag"].to_pylist()))
    for uri, found in zip(uris, read(listed), strict=True):
        shown = found | {name: options.identifiers.uid(found.get(name)) for name in IDENTIFYING}
        for name, values in columns.items():
            values.append(folder_of(uri) if name == "group" else shown.get(name))
        watch.advance()
    schema = options.schema
    arrays = [
        rows[name] if name in MANIFEST.names else pa.array(columns[name], schema.field(name).type)
        for name in schema.names
    ]
    return pa.table(arrays, schema=schema)


def _encoded(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", row_group_size=table.num_rows)
    return file.getvalue()


def _rows(data: bytes) -> Iterator[tuple[object, ...]]:
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _write(uri: str, data: bytes) -> None:
    try:
        storage.write_bytes(uri, data)
    except storage.StorageError as error:
        raise unwritable(error) from error
