"""A run whose identifiers are hashed, made of one that names its objects."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.archive.identifiers import BESIDE, Identifiers
from ad_jobs.archive.manifest import read_parts
from ad_jobs.index import index
from ad_jobs.results.run import describe_parts, read_record, write_record
from ad_jobs.schema import SCORES, UIDS

IDENTIFIERS = Identifiers("hashed", b"key")


def hide(run: str, source: str) -> str:
    """Hash the names in a local run of `source`; where its manifest lies, beside it."""
    info = index(source=source, out=run + BESIDE)
    ids = {row["uri"]: row["object_id"] for table in read_parts(info) for row in table.to_pylist()}
    for part in Path(run, "scores").iterdir():
        rows = [
            row
            | {"object_id": ids[row["uri"]], "uri": IDENTIFIERS.uri(row["uri"])}
            | {name: IDENTIFIERS.uid(row[name]) for name in UIDS}
            for row in pq.read_table(part).to_pylist()
        ]
        pq.write_table(pa.Table.from_pylist(rows, SCORES), part)
    record = read_record(run)
    named = {"uri": IDENTIFIERS.uri(info.uri), "digest": info.digest, "objects": info.objects}
    changed = {
        "source": IDENTIFIERS.uri(source),
        "manifest": record.manifest.model_copy(update=named),
        "config": {"identifiers": "hashed"},
        "parts": describe_parts(run),
    }
    write_record(run, record.model_copy(update=changed))
    return info.uri
