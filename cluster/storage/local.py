"""Objects on a local disk or a network mount: `contract` for absolute paths."""

from __future__ import annotations

import errno
import os
import shutil
import stat as stat_modes
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pyarrow import fs

from cluster.errors import AccessDenied, Exists, Full, NotFound, StorageError, Unreachable
from cluster.storage import uris
from cluster.storage.contract import Fetched, LeftOut, ObjectInfo, check_size
from cluster.storage.listing import Walk

# What is not named here (EIO, ESTALE, ETIMEDOUT...) is a disk or a network mount that does not answer.
_KINDS: dict[int, type[StorageError]] = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG), NotFound),
    # What opening a socket, or a device without a driver, is answered with.
    **dict.fromkeys((errno.ENXIO, errno.ENODEV), NotFound),
    **dict.fromkeys((errno.EACCES, errno.EPERM), AccessDenied),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), Full),
    errno.EEXIST: Exists,
    errno.EROFS: StorageError,
}


@contextmanager
def local_errors(uri: str) -> Iterator[None]:
    """A block in which whatever the operating system raises becomes a StorageError about `uri`."""
    try:
        yield
    except OSError as error:
        detail = error.strerror or str(error)
        if isinstance(error.filename, str) and error.filename != uris.local_path(uri):
            detail += f" ({uris.local_uri(error.filename)})"
        raise _KINDS.get(error.errno or 0, Unreachable)(uri, detail) from error
    except ValueError as error:
        # A NUL in the path.
        raise NotFound(uri, f"no disk can hold such a name: {error}") from error


def list_objects(root: str, left_out: Counter[LeftOut] | None) -> Iterator[ObjectInfo]:
    """Every regular file below the folder."""
    walk = Walk(uris.local_path(root), skip_unreadable=left_out is not None)
    undecodable: list[ObjectInfo] = []
    with local_errors(root):
        for path, status in walk:
            info = _info(uris.local_uri(path), status)
            # Escaped names begin with "file://", which sorts after every absolute path.
            if info.uri.startswith(uris.FILE):
                undecodable.append(info)
            else:
                yield info
    yield from sorted(undecodable, key=lambda info: info.uri)
    if left_out is not None:
        left_out.update(walk.left_out)


def beginning_with(uri: str) -> list[str]:
    """Files beside each other; none where there is no folder."""
    path = Path(uris.local_path(uri))
    with local_errors(uri):
        try:
            names = os.listdir(path.parent)  # noqa: PTH208 - names, not paths
        except (FileNotFoundError, NotADirectoryError):
            return []
    return [uris.local_uri(str(path.parent / name)) for name in names if name.startswith(path.name)]


def found(root: str) -> Iterator[ObjectInfo]:
    """The same, as the walk comes to them; what may not be read is left out."""
    return list_objects(root, Counter())


def stat(uri: str) -> ObjectInfo:
    """What the file's status tells."""
    with local_errors(uri):
        status = os.stat(uris.local_path(uri))  # noqa: PTH116 - names may hold undecodable bytes
    if not stat_modes.S_ISREG(status.st_mode):
        raise NotFound(uri, "not a regular file")
    return _info(uri, status)


def _info(uri: str, status: os.stat_result) -> ObjectInfo:
    modified = datetime.fromtimestamp(status.st_mtime_ns // 1_000_000_000, UTC)
    modified = modified.replace(microsecond=status.st_mtime_ns // 1_000 % 1_000_000)
    return ObjectInfo(uri, status.st_size, _etag(status), modified)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def check_bucket(uri: str) -> None:
    """Nothing: a path needs no bucket."""


def fetch(uri: str, max_bytes: int | None, within: str | None) -> Fetched:
    """Content and etag of one opened file."""
    with local_errors(uri), _open_regular(uri, within) as file:
        status = os.fstat(file.fileno())
        check_size(uri, status.st_size, max_bytes)
        data = file.read() if max_bytes is None else file.read(max_bytes + 1)
        # It may have grown meanwhile.
        check_size(uri, len(data), max_bytes)
        return Fetched(data, _etag(status))


def fetch_piece(uri: str, offset: int, length: int, within: str | None) -> Fetched:
    """Part of the content; empty where it begins at or after the end."""
    with local_errors(uri), _open_regular(uri, within) as file:
        status = os.fstat(file.fileno())
        file.seek(offset)
        return Fetched(file.read(length), _etag(status))


def _open_regular(uri: str, within: str | None = None) -> IO[bytes]:
    path = uris.local_path(uri)
    # A pipe in the archive must not make a worker wait for a writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    if within is not None:
        # Neither the name nor a folder on the way may have become a link out of the archive.
        try:
            path, root = os.path.realpath(path, strict=True), os.path.realpath(uris.local_path(within))
        except OSError as error:
            # What it leads to is not named.
            raise OSError(error.errno, error.strerror) from error
        if not path.startswith(root.removesuffix("/") + "/"):
            raise NotFound(uri, "now a link out of the archive")
        flags |= os.O_NOFOLLOW
    descriptor = os.open(path, flags)
    if not stat_modes.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotFound(uri, "not a regular file")
    return os.fdopen(descriptor, "rb")


def write_bytes(uri: str, data: bytes) -> None:
    """A new file in place of the old one."""
    with local_errors(uri), _replacing(Path(uris.local_path(uri))) as file:
        file.write(data)


def create_bytes(uri: str, data: bytes) -> bool:
    """A new file, opened exclusively (O_EXCL)."""
    path = Path(uris.local_path(uri))
    with local_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)
    return True


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` if the block ends well, and is on the disk by then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}{uris.TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # The new name, too, must survive a power cut.
        os.fsync(folder)
    finally:
        os.close(folder)


def delete(uri: str) -> None:
    """Unlink the file, if there is one."""
    with local_errors(uri):
        Path(uris.local_path(uri)).unlink(missing_ok=True)


def upload(source: IO[bytes], uri: str) -> None:
    """A copy in place of the old file."""
    with local_errors(uri), _replacing(Path(uris.local_path(uri))) as file:
        shutil.copyfileobj(source, file)


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The local one, and the plain path."""
    return fs.LocalFileSystem(), uris.local_path(uri)
