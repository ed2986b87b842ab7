"""Columns of a run's manifest beside its table, by object_id: what `index --headers` read and a table does not have."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from ad_jobs.archive.identifiers import is_hashed, place_beside
from ad_jobs.archive.manifest import read_parts
from ad_jobs.archive.manifest_record import ManifestInfo, stored_manifest
from ad_jobs.results.run import RunRecord
from ad_jobs.schema import IDENTIFYING
from cluster import storage


class ObjectColumns:
    """Columns of all objects of a manifest; four bytes are held for each object and column."""

    def __init__(self, columns: dict[str, pa.Array]) -> None:
        self._columns = columns

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._columns)

    def of(self, name: str, object_ids: pa.Array) -> pa.Array:
        """A column's values of these objects."""
        found = self._columns[name].take(object_ids)
        return found.dictionary_decode() if pa.types.is_dictionary(found.type) else found


def manifest_of(run_uri: str, record: RunRecord) -> ManifestInfo | None:
    """The manifest that a run was made from, `as_told`; None where it is gone, or another one by now.

    That of a run with hashed identifiers is found beside its folder alone.
    Who asks says what it means that there is none.

    Raises:
        StorageError: the store does not say whether it is there.
    """
    uri: str | None = record.manifest.uri
    if is_hashed(uri):
        uri = place_beside(run_uri)
    try:
        info = None if uri is None else stored_manifest(uri)
    except storage.AccessDenied:
        # A run may be handed to those who may not see its archive.
        return None
    return as_told(record, info) if info is not None and info.digest == record.manifest.digest else None


def as_told(record: RunRecord, info: ManifestInfo) -> ManifestInfo:
    """A run's manifest without the columns that the run may not tell.

    That is what identifies, in a run without identifiers, and in one with hashed ones if the manifest does not hash it.
    """
    mode = record.config.get("identifiers", "plain")
    if mode == "plain" or mode == info.identifiers == "hashed":
        return info
    return info.model_copy(update={"columns": tuple(name for name in info.names if name not in IDENTIFYING)})


def read_object_columns(info: ManifestInfo, names: Sequence[str]) -> ObjectColumns:
    """Those of the columns that the manifest has.

    Raises:
        JobError: a part of it is missing or damaged.
    """
    there = [name for name in names if name in info.table_schema.names]
    if not there:
        return ObjectColumns({})
    chunks: dict[str, list[pa.Array]] = {name: [] for name in there}
    for part in read_parts(info, there):
        for name, held in chunks.items():
            for chunk in part[name].chunks:
                held.append(chunk.dictionary_encode() if pa.types.is_string(chunk.type) else chunk)
    types = {name: held[0].type if held else info.table_schema.field(name).type for name, held in chunks.items()}
    whole = {name: pa.chunked_array(held, types[name]).unify_dictionaries() for name, held in chunks.items()}
    return ObjectColumns({name: column.combine_chunks() for name, column in whole.items()})
