"""How headers become columns of a manifest, and what its parts say of that."""

from __future__ import annotations

import json
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.archive.identifiers import Identifiers, Naming
from ad_jobs.archive.manifest_record import ManifestInfo
from ad_jobs.schema import DEMOGRAPHICS, IDENTIFYING, MANIFEST_HEADERS, manifest_schema
from cluster import storage

# In a part's metadata: how it was made.
_MADE = b"retroscan.headers"
# Of how headers are read: parts of another version are made anew.
_VERSION = 1


class HeaderOptions(NamedTuple):
    """How headers become columns.

    `identifiers` says how studies, series, instances and institutions are named, `demographics` whether ages (by bands)
    and sexes are told, and `address` which cluster reads, if not this process.
    """

    identifiers: Identifiers = Identifiers()
    demographics: bool = False
    address: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the manifest."""
        hidden = IDENTIFYING if self.identifiers.mode == "none" else ()
        shown = tuple(name for name in MANIFEST_HEADERS.names if name not in hidden)
        return shown + tuple(DEMOGRAPHICS.names if self.demographics else ())

    @property
    def schema(self) -> pa.Schema:
        """The schema of the manifest's parts, with how they are made."""
        naming = self.identifiers.naming
        made = {"version": _VERSION, "identifiers": naming.mode, "key": naming.key}
        return manifest_schema(self.columns).with_metadata({_MADE: json.dumps(made).encode()})


def naming_of(info: ManifestInfo) -> Naming:
    """How a manifest with headers names what identifies, by its first part, which is known to be there.

    One of a version that did not say so names it as it is.
    """
    if info.identifiers != "hashed":
        return Naming(info.identifiers or "plain", "")
    filesystem, path = storage.filesystem(storage.join(info.uri, info.parts[0].name))
    made = json.loads((pq.read_schema(path, filesystem=filesystem).metadata or {})[_MADE])
    return Naming("hashed", made["key"])
