"""Manifests and runs of any size whose files are written directly: nothing is listed, decoded or scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.archive.listing import BATCH_ROWS, PART_ROWS
from ad_jobs.archive.manifest import row_bytes
from ad_jobs.archive.manifest_record import RECORD, ManifestInfo, Part, Record, manifest_info, part_name, record_bytes
from ad_jobs.schema import MANIFEST, MANIFEST_HEADERS

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
Columns = Callable[[NDArray[np.int64]], dict[str, pa.Array]]


def write_manifest(root: str, out: Path, objects: int, columns: Columns, *, headers: bool = False) -> ManifestInfo:
    """A manifest of so many objects below `root`.

    Args:
        root: what it says that it was made of.
        out: a new folder.
        objects: how many.
        columns: of the objects at these places, their `uri` and `etag`, in order; with `headers` any of their columns.
        headers: whether it has those columns.
    """
    out.mkdir(parents=True)
    schema = MANIFEST_HEADERS if headers else MANIFEST
    digest, parts = hashlib.sha256(), []
    for first in range(0, objects, PART_ROWS):
        path, end = out / part_name(len(parts)), min(objects, first + PART_ROWS)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for start in range(first, end, BATCH_ROWS):
                ids = np.arange(start, min(end, start + BATCH_ROWS))
                given = {
                    "object_id": pa.array(ids),
                    "bytes": pa.array(np.full(len(ids), 4096)),
                    "modified": pa.array([MOMENT] * len(ids), MANIFEST.field("modified").type),
                    **columns(ids),
                }
                arrays = [given[f.name] if f.name in given else pa.nulls(len(ids), f.type) for f in schema]
                table = pa.table(arrays, schema=schema)
                digest.update(_as_rows(table, start == 0))
                writer.write_table(table, row_group_size=BATCH_ROWS)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        parts.append(Part(name=path.name, rows=end - first, sha256=sha256))
    record = Record(
        source=root,
        root=root,
        objects=objects,
        digest=digest.hexdigest(),
        headers=headers,
        columns=tuple(schema.names),
        identifiers="plain" if headers else None,
        parts=tuple(parts),
        created=MOMENT.isoformat(),
    )
    (out / RECORD).write_bytes(record_bytes(record))
    return manifest_info(str(out))


def _as_rows(table: pa.Table, check: bool) -> bytes:
    """The rows of a table as the manifest's digest takes them in, without a Python object for each."""
    batch = table.combine_chunks().to_batches()[0]
    texts = [_json(column) for column in batch.columns]
    rows = pc.binary_join_element_wise("[", pc.binary_join_element_wise(*texts, ","), "]\n", "")
    if check:
        assert rows[0].as_py().encode() == row_bytes(tuple(batch.slice(0, 1).to_pylist()[0].values()))
    # What lies in the array's buffer of values is its rows, one behind the other.
    return bytes(rows.buffers()[2])[: sum(pc.binary_length(rows).to_numpy(zero_copy_only=False).tolist())]


def _json(column: pa.Array) -> pa.Array:
    if column.null_count == len(column):
        return pa.array(["null"] * len(column))
    if pa.types.is_timestamp(column.type):
        column = pa.array([MOMENT.isoformat()] * len(column))
    if pa.types.is_list(column.type):
        raise TypeError("Rows of a made manifest have no lists.")
    if pa.types.is_string(column.type):
        quoted = pc.binary_join_element_wise('"', column, '"', "")
        return pc.fill_null(quoted, "null")
    return pc.fill_null(column.cast(pa.string()), "null")


def numbered(before: str, numbers: NDArray[np.int64], digits: int, behind: str) -> pa.Array:
    """The texts BEFORE, a number of so many digits, BEHIND."""
    padded = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0")
    return pc.binary_join_element_wise(before, padded, behind, "")
