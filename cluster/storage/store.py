"""Objects by URI: every function asks the store that the URI names, `local` or `s3`.

What is refused is refused with a StorageError of `cluster.errors`, never a bare OSError or an error of botocore.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyarrow import fs

from cluster.errors import NotFound, StorageError
from cluster.storage import local, s3, uris
from cluster.storage.contract import Fetched, ObjectInfo, Store


def _store(uri: str) -> Store:
    """The store that a URI names.

    Raises:
        StorageError: a relative path, which would mean another file in another process.
    """
    if uris.is_s3(uri):
        return s3
    if not uris.local_path(uri).startswith("/"):
        raise StorageError(uri, "a relative path; objects are named by s3://bucket/key or an absolute path")
    return local


# --- Listing


def list_objects(root: str) -> Iterator[ObjectInfo]:
    """Every object below `root`, sorted by URI (code points), in bounded memory.

    Hidden files are objects too.
    Not listed: folders, the empty `.../` keys some tools write to mark one, devices and pipes, and symbolic links to
    folders or out of `root` (their number is logged).

    Raises:
        NotFound: the folder or bucket does not exist, or no key begins with the prefix.
        AccessDenied: the store, or any folder below `root`, refuses to be listed.
        Unreachable: the store does not answer.
    """
    return _store(root).list_objects(root)


def list_names(root: str) -> list[str]:
    """The names of the objects below `root`, relative to it, sorted; raises as `list_objects` does."""
    start = len(uris.local_path(root).removesuffix("/")) + 1
    return sorted(uris.local_path(found.uri)[start:] for found in list_objects(root))


def is_folder(uri: str) -> bool:
    """True if at least one object lies below `uri`."""
    try:
        return _store(uri).is_folder(uri)
    except NotFound:
        return False


def stat(uri: str) -> ObjectInfo:
    """What the store knows of one object, without its content, by one HEAD; raises as `fetch` does."""
    return _store(uri).stat(uri)


def exists(uri: str) -> bool:
    """True if there is an object at `uri`; a folder is none.

    Raises:
        AccessDenied: the store does not tell.
        Unreachable: the store does not answer.
    """
    try:
        stat(uri)
    except NotFound:
        return False
    return True


def check_bucket(uri: str) -> None:
    """Ask for the bucket of an S3 URI before long work that is to end there; local URIs need no bucket.

    A key that may not ask is no error.

    Raises:
        NotFound: there is no such bucket.
        Unreachable: the store does not answer.
    """
    _store(uri).check_bucket(uri)


# --- Reading


def fetch(uri: str, max_bytes: int | None = None) -> Fetched:
    """An object's content and etag, by one GET.

    Args:
        uri: local or S3.
        max_bytes: the size is compared with this before any of the body is read.

    Raises:
        NotFound: there is no such object.
        AccessDenied: the store refuses it.
        Unreachable: the store does not answer.
        TooLarge: it has more than `max_bytes`.
    """
    return _store(uri).fetch(uri, max_bytes)


def fetch_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`, or as many as there are; raises as `fetch` does."""
    return _store(uri).fetch_range(uri, offset, length) if length > 0 else b""


def read_bytes(uri: str) -> bytes:
    """An object's content; raises as `fetch` does."""
    return fetch(uri).data


# --- Writing


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole or not at all; folders on the way are made. What was there before is replaced."""
    _store(uri).write_bytes(uri, data)


def create_bytes(uri: str, data: bytes) -> None:
    """As `write_bytes`, where no object is yet.

    Raises:
        Exists: there is one.
    """
    _store(uri).create_bytes(uri, data)


def delete(uri: str) -> None:
    """Remove an object; none at `uri` is no error."""
    _store(uri).delete(uri)


# --- Copies of local files


def upload_file(path: Path, uri: str) -> None:
    """Copy a local file to `uri`, in several parts where it is large."""
    with local.local_errors(str(path)), path.open("rb") as source:
        _store(uri).upload(source, uri)


# --- pyarrow


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem of a URI under the same client policy, and the path it knows the URI by.

    Credentials are looked up where it is used, not carried along: it may be pickled to a worker and logged.
    """
    return _store(uri).filesystem(uri)
