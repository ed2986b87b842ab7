"""How headers become columns of a manifest, and what its parts say of that."""

from __future__ import annotations

import json
from typing import NamedTuple

import pyarrow as pa

from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.schema import DEMOGRAPHICS, MANIFEST_HEADERS, UIDS, manifest_schema

# In a part's metadata: how it was made.
_MADE = b"retroscan.headers"
# Of how headers are read: parts of another version are made anew.
_VERSION = 1


class HeaderOptions(NamedTuple):
    """How headers become columns.

    `identifiers` says how studies, series and instances are named, `demographics` whether ages (by bands) and sexes are
    told, and `address` which cluster reads, if not this process.
    """

    identifiers: Identifiers = Identifiers()
    demographics: bool = False
    address: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the manifest."""
        hidden = UIDS if self.identifiers.mode == "none" else ()
        shown = tuple(name for name in MANIFEST_HEADERS.names if name not in hidden)
        return shown + tuple(DEMOGRAPHICS.names if self.demographics else ())

    @property
    def schema(self) -> pa.Schema:
        """The schema of the manifest's parts, with how they are made."""
        # A hash of nothing tells one key from another, and nothing of either.
        made = {"version": _VERSION, "identifiers": self.identifiers.mode, "key": self.identifiers.uid("")}
        return manifest_schema(self.columns).with_metadata({_MADE: json.dumps(made).encode()})
