"""What a manifest says of itself: `manifest.json`, written last, and what is taken for a manifest.

Anyone who writes to an archive can put files of a manifest's names into it.
So a folder is taken for a manifest only if nothing else lies there, its record is whole, and all of its objects lie
below the folder that it was made of; whoever names it `manifest:URI` says so himself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from typing import Any, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, model_validator

from ad_jobs.errors import JobError, UsageError
from ad_jobs.schema import FIRST_HEADERS, MANIFEST, manifest_schema
from ad_jobs.specs import IdentifierMode
from ad_jobs.values import MANIFEST as NAMED
from cluster import storage

log = logging.getLogger("retroscan.manifest")

RECORD = "manifest.json"
# What older versions of `index` did not yet write down of a list.
_LISTS = (".csv", ".parquet")


class Part(BaseModel):
    """One Parquet file of a manifest: its name in the folder, its rows, and its content's sha256."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    sha256: str


class Record(BaseModel):
    """The content of `manifest.json`, beside its `seal`: `created` is an ISO time in UTC."""

    model_config = ConfigDict(frozen=True)

    source: str
    # The folder or prefix that all objects lie below; None for those of a list, which may lie anywhere.
    root: str | None
    objects: int
    # A sha256 over all rows.
    digest: str
    headers: bool
    # None in those of a version that did not write them down.
    columns: tuple[str, ...] | None = None
    # How studies, series, instances and institutions are named; None without them.
    identifiers: IdentifierMode | None = None
    parts: tuple[Part, ...]
    # What lies below the source and is no object, counted by why (`storage.LeftOut`).
    left_out: dict[str, int] = {}
    created: str

    @model_validator(mode="after")
    def _of_one_piece(self) -> Self:
        if [part.name for part in self.parts] != [part_name(number) for number in range(len(self.parts))]:
            raise ValueError("its parts are not numbered in order")
        if self.objects != sum(part.rows for part in self.parts):
            raise ValueError("its parts do not have as many rows as there are objects")
        return self


class ManifestInfo(Record):
    """A finished manifest: what its `manifest.json` says, and the folder it lies in."""

    uri: str

    @property
    def names(self) -> tuple[str, ...]:
        """Its columns, in order."""
        if self.columns is not None:
            return self.columns
        return FIRST_HEADERS if self.headers else tuple(MANIFEST.names)

    @property
    def table_schema(self) -> pa.Schema:
        """The schema of its rows, as far as this version knows the columns."""
        return manifest_schema(self.names)

    @property
    def fingerprint(self) -> str:
        """A sha256 over what it lists and how, by the digests of its parts: `digest` knows no names of columns."""
        content = self.model_dump(mode="json", include={"source", "root", "objects", "digest", "headers", "parts"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def part_name(number: int) -> str:
    """The file name of a manifest's `number`-th part."""
    return f"part-{number:05d}.parquet"


def is_own(name: str) -> bool:
    """Whether a file of this name may be what `index` left in a folder, even if it was killed there."""
    return name == RECORD or bool(re.fullmatch(r"part-\d{5,}\.parquet", name)) or storage.is_temporary(name)


def find_manifest(source: str) -> ManifestInfo | None:
    """The manifest that a SOURCE is: one that is named `manifest:URI`, or a folder that holds nothing else; or None.

    Raises:
        UsageError: None is there, although one is named; or a folder is one of objects that may lie anywhere.
        StorageError: The store refuses or does not answer.
    """
    if source.startswith(NAMED):
        return manifest_info(source)
    found = stored_manifest(source)
    if found is None:
        return None
    if storage.holds_other(source, is_own):
        log.warning(
            "%s holds a %s among other objects, and is taken for an archive. If it is a manifest, name it %s%s.",
            source,
            RECORD,
            NAMED,
            source,
        )
        return None
    if found.root is None:
        raise UsageError(
            "A manifest whose objects lie below no one folder is named as such.",
            f"{source}, a manifest of {found.source}",
            f"Write {NAMED}{source} if you trust who made it.",
        )
    return found


def stored_manifest(uri: str) -> ManifestInfo | None:
    """The finished manifest in the folder `uri`, whatever else lies there; None if there is none.

    Raises:
        StorageError: The store refuses or does not answer.
    """
    try:
        content = json.loads(storage.read_bytes(storage.join(uri, RECORD)))
        if not isinstance(content, dict):
            return None
        seal = content.pop("seal", None)
        if seal is None and "root" not in content:
            content["root"] = _older_root(str(content.get("source")))
        elif seal != _seal(content):
            return None
        return ManifestInfo(uri=uri, **content)
    except (storage.NotFound, ValueError, RecursionError, TypeError):
        return None


def record_bytes(record: Record) -> bytes:
    """What is written as `manifest.json`: the record, and its seal."""
    content = record.model_dump(mode="json")
    return (json.dumps({**content, "seal": _seal(content)}, indent=2) + "\n").encode()


def _seal(content: dict[str, Any]) -> str:
    """A sha256 over what a record says."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _older_root(source: str) -> str | None:
    """The root of a manifest by a version that did not record it."""
    return None if source.lower().endswith(_LISTS) else source


def manifest_info(source: str) -> ManifestInfo:
    """The finished manifest in a folder, with or without `manifest:` before it.

    Raises:
        UsageError: There is none, or it cannot be read.
    """
    uri = source.removeprefix(NAMED)
    try:
        found = stored_manifest(uri)
    except storage.StorageError as error:
        raise refusal(error) from error
    if found is None:
        raise UsageError(
            f"A manifest is a folder with a {RECORD}, which is written last and not changed.",
            uri,
            "Make one with: retroscan index SOURCE --out MANIFEST.",
        )
    return found


def refusal(error: storage.StorageError) -> UsageError:
    """What to tell a user whose source or folder the store does not give: the rule, the value, the remedy."""
    s3 = storage.is_s3(error.uri)
    if isinstance(error, storage.NotFound):
        rule = "The bucket and prefix must exist." if s3 else "The file or folder must exist."
        remedy = "Check the spelling, and AWS_ENDPOINT_URL if this is not AWS." if s3 else "Check the spelling."
    elif isinstance(error, storage.AccessDenied):
        rule = "These credentials must be allowed to list and read it." if s3 else "It must be readable."
        remedy = (
            "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and the bucket's policy."
            if s3
            else "Check its permissions, and those of the folders on the way."
        )
    elif isinstance(error, storage.Unreachable):
        rule = "The store must answer."
        remedy = "Check AWS_ENDPOINT_URL and the network." if s3 else "Check the disk or the network mount."
    else:
        rule = "The store must accept the request."
        remedy = "Check the URI and the AWS settings." if s3 else "Check the path."
    return UsageError(rule, f"{error.uri} ({error.detail})", remedy)


def changed_since(existing: ManifestInfo) -> UsageError:
    """The refusal to write a manifest where one lies that is of another source, or of the same before it changed."""
    keyed = ", or the key of its identifiers," if existing.identifiers == "hashed" else ""
    return UsageError(
        "A manifest is not rewritten, because runs refer to it.",
        f"{existing.uri} of {existing.created}, since when the source{keyed} has changed",
        "Index into a new folder.",
    )


def unwritable(error: storage.StorageError) -> JobError:
    """That the store does not take a part of the manifest, or its record."""
    return JobError(f"The manifest cannot be written: {error}.", "Check that --out is writable.")
