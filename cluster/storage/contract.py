"""What a store can be asked, and how it answers: one contract, which the modules `local` and `s3` keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import IO, NamedTuple, Protocol

from pyarrow import fs

from cluster.counting import counted
from cluster.errors import TooLarge


class ObjectInfo(NamedTuple):
    """What a listing knows of an object; `modified` is in UTC."""

    uri: str
    bytes: int
    etag: str | None
    modified: datetime | None


class LeftOut(StrEnum):
    """What lies below a folder, or in a container there, and is no object, by why it is left out of a listing."""

    # A symbolic link out of the folder, to another folder, to nowhere, or to itself.
    LINK = "links"
    # A pipe, socket or device.
    SPECIAL = "special_files"
    # A folder or file that this user may not look at.
    UNREADABLE = "unreadable"
    # Longer with its folders than the system takes.
    TOO_LONG = "too_long"
    # A ZIP or TAR without a file in it.
    EMPTY_CONTAINER = "empty_containers"
    # A file in a ZIP or TAR that a later one of the same name replaces.
    REPLACED = "replaced_members"


class Fetched(NamedTuple):
    """An object's content, or the part of it that was asked for, and the etag it had in the same answer."""

    data: bytes
    etag: str | None


class Store(Protocol):
    """The functions of a store; those of `cluster.storage.store` say what each does, and what it raises."""

    def list_objects(self, root: str, left_out: Counter[LeftOut] | None) -> Iterator[ObjectInfo]: ...

    def found(self, root: str) -> Iterator[ObjectInfo]:
        """As `list_objects`, in any order and as soon as they are known."""

    def beginning_with(self, uri: str) -> list[str]: ...

    def stat(self, uri: str) -> ObjectInfo: ...

    def check_bucket(self, uri: str) -> None: ...

    def fetch(self, uri: str, max_bytes: int | None, within: str | None) -> Fetched: ...

    def fetch_piece(self, uri: str, offset: int, length: int, within: str | None) -> Fetched: ...

    def write_bytes(self, uri: str, data: bytes) -> None: ...

    def create_bytes(self, uri: str, data: bytes) -> bool: ...

    def delete(self, uri: str) -> None: ...

    def upload(self, source: IO[bytes], uri: str) -> None:
        """Write what `source` holds, however large, as `write_bytes` does."""

    def filesystem(self, uri: str) -> tuple[fs.FileSystem, str]: ...


def check_size(uri: str, size: int, max_bytes: int | None) -> None:
    """Raise TooLarge if an object of so many bytes is more than its reader allows."""
    if max_bytes is not None and size > max_bytes:
        raise TooLarge(uri, f"{counted(size, 'byte')}, more than the limit of {max_bytes}")
