"""What a run's manifest says of its objects, beside the table: the scanner's model, its site, age bands, sex."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from ad_jobs.archive.manifest import read_parts
from ad_jobs.archive.sql import Stream
from ad_jobs.results.object_columns import manifest_of
from ad_jobs.results.run import RunRecord


def described(run_uri: str, record: RunRecord, columns: Sequence[str]) -> Stream | None:
    """The object_id and those of these columns that the run's manifest has, of all objects that it lists.

    None where it has none of them, or `manifest_of` finds none.
    """
    info = manifest_of(run_uri, record)
    if info is None or not (known := [name for name in columns if name in info.names]):
        return None
    schema = pa.schema([info.table_schema.field(name) for name in ("object_id", *known)])

    def batches() -> Iterator[pa.RecordBatch]:
        for table in read_parts(info, schema.names):
            yield from table.cast(schema).to_batches()

    return Stream(schema, batches())
