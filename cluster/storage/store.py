"""Objects by URI: every function asks the store that the URI names, `local` or `s3`.

What is refused is refused with a StorageError of `cluster.errors`, never a bare OSError or an error of botocore.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pyarrow import fs

from cluster.errors import NotFound, StorageError
from cluster.storage import local, s3, uris
from cluster.storage.contract import Fetched, LeftOut, ObjectInfo, Store


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


def list_objects(root: str, left_out: Counter[LeftOut] | None = None) -> Iterator[ObjectInfo]:
    """Every object below `root`, sorted by URI (code points), in bounded memory.

    Hidden files are objects too.
    Not listed: folders, the empty `.../` keys some tools write to mark one, pipes, sockets and devices, names longer
    than the system takes, and symbolic links to folders or out of `root`.
    `left_out` counts them, at the end; with it, what may not be read is left out and counted, too.

    Raises:
        NotFound: the folder or bucket does not exist, or no key begins with the prefix.
        AccessDenied: the store refuses to be listed; without `left_out`, any folder below `root`.
        Unreachable: the store does not answer.
    """
    return _store(root).list_objects(root, left_out)


def list_names(root: str) -> list[str]:
    """The names of the objects below `root`, relative to it, sorted; raises as `list_objects` does."""
    start = len(uris.local_path(root).removesuffix("/")) + 1
    return sorted(uris.local_path(found.uri)[start:] for found in list_objects(root))


def beginning_with(uri: str) -> list[str]:
    """URIs of the objects in the folder of `uri` whose names begin with its name, in any order."""
    return _store(uri).beginning_with(uri)


def is_folder(uri: str) -> bool:
    """True if at least one object lies below `uri`."""
    return holds_other(uri, lambda _: False)


def holds_other(uri: str, known: Callable[[str], bool]) -> bool:
    """True if an object lies below `uri` whose name, relative to it, is not `known`."""
    start = len(uris.local_path(uri).removesuffix("/")) + 1
    try:
        return any(not known(uris.local_path(found.uri)[start:]) for found in _store(uri).found(uri))
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


def fetch(uri: str, max_bytes: int | None = None, within: str | None = None) -> Fetched:
    """An object's content and etag, by one GET.

    Args:
        uri: local or S3.
        max_bytes: the size is compared with this before any of the body is read.
        within: the folder that a local object lies in, when all links are followed; what leads out of it is not found.

    Raises:
        NotFound: there is no such object.
        AccessDenied: the store refuses it.
        Unreachable: the store does not answer.
        TooLarge: it has more than `max_bytes`.
    """
    return _store(uri).fetch(uri, max_bytes, within)


def fetch_piece(uri: str, offset: int, length: int, within: str | None = None) -> Fetched:
    """`length` bytes from `offset`, one or more, or as many as there are, and the etag of the whole object.

    `within` and what is raised are those of `fetch`.
    The etag is None where no byte is there, too.
    """
    return _store(uri).fetch_piece(uri, offset, length, within)


def fetch_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`, or as many as there are; raises as `fetch` does."""
    return fetch_piece(uri, offset, length).data if length > 0 else b""


def read_bytes(uri: str) -> bytes:
    """An object's content; raises as `fetch` does."""
    return fetch(uri).data


# --- Writing


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole or not at all; folders on the way are made. What was there before is replaced."""
    _store(uri).write_bytes(uri, data)


def create_bytes(uri: str, data: bytes) -> bool:
    """As `write_bytes`, where no object is yet.

    False if the store knows no such request: what was there is then replaced, and nobody is told.

    Raises:
        Exists: there is one.
    """
    return _store(uri).create_bytes(uri, data)


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
