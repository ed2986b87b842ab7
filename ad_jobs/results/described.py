"""What a run's manifest says of its objects, beside the table: the scanner's model, age bands, sex."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from ad_jobs.archive.manifest import read_parts
from ad_jobs.archive.manifest_record import manifest_info
from ad_jobs.archive.sql import Stream
from ad_jobs.errors import UsageError
from ad_jobs.results.run import RunRecord


def described(record: RunRecord, columns: Sequence[str]) -> Stream | None:
    """The object_id and those of these columns that the run's manifest has, of all objects that it lists.

    None where it has none of them, or is not there any more: gone, hidden, or another one by now.
    """
    try:
        info = manifest_info(record.manifest.uri)
    except UsageError:
        # A run outlives its manifest, and one with hashed identifiers does not say where it lies.
        return None
    known = [name for name in columns if name in info.names]
    if info.digest != record.manifest.digest or not known:
        return None
    schema = pa.schema([info.table_schema.field(name) for name in ("object_id", *known)])

    def batches() -> Iterator[pa.RecordBatch]:
        for table in read_parts(info, schema.names):
            yield from table.cast(schema).to_batches()

    return Stream(schema, batches())
