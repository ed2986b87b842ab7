"""Objects by URI: list, read, write, on a local disk or in any S3-compatible store.

Every function raises a StorageError of `cluster.errors`, never a bare OSError or an error of botocore. S3 is
configured by the usual AWS variables (`AWS_ENDPOINT_URL`, keys, region, profile): see `cluster.storage.s3`.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import shutil
import stat as stat_modes
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import botocore.exceptions as boto_errors
import urllib3.exceptions
from botocore.response import StreamingBody
from pyarrow import fs

from cluster.errors import AccessDenied, Exists, Full, KeysRefused, NotFound, StorageError, TooLarge, Unreachable
from cluster.storage import s3, uris
from cluster.storage.listing import Walk, sort_bounded
from cluster.storage.uris import absolute, is_s3, join, parent

__all__ = [
    "AccessDenied",
    "Exists",
    "Fetched",
    "Full",
    "KeysRefused",
    "NotFound",
    "ObjectInfo",
    "StorageError",
    "TooLarge",
    "Unreachable",
    "absolute",
    "check_bucket",
    "create_bytes",
    "delete",
    "download_folder",
    "exists",
    "fetch",
    "fetch_range",
    "filesystem",
    "is_folder",
    "is_s3",
    "join",
    "list_names",
    "list_objects",
    "parent",
    "patiently",
    "read_bytes",
    "stat",
    "upload_file",
    "upload_folder",
    "write_bytes",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

BODY_ATTEMPTS = 3  # of one object whose body broke off: botocore repeats requests, not bodies
# Longest time one body may take: its parts may each come in time, and the last one never.
BODY_TIMEOUT_S = 300.0
# How long a store may be away before those who wait for it give up: time to restart a server, or for an operator to.
PATIENCE_S = 600.0
_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0  # between two attempts


class ObjectInfo(NamedTuple):
    """What a listing knows of an object; `modified` is in UTC."""

    uri: str
    bytes: int
    etag: str | None
    modified: datetime | None


class Fetched(NamedTuple):
    """An object's content, and the etag it had in the same answer."""

    data: bytes
    etag: str | None


# What is not named here (EIO, ESTALE, ETIMEDOUT...) is a disk or a network mount that does not answer.
_LOCAL: dict[int, type[StorageError]] = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG), NotFound),
    **dict.fromkeys((errno.EACCES, errno.EPERM), AccessDenied),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), Full),
    errno.EEXIST: Exists,
    errno.EROFS: StorageError,
}


@contextmanager
def _local_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        detail = error.strerror or str(error)
        if isinstance(error.filename, str) and error.filename != uris.local_path(uri):
            detail += f" ({uris.local_uri(error.filename)})"
        raise _LOCAL.get(error.errno or 0, Unreachable)(uri, detail) from error
    except ValueError as error:  # a NUL in the path
        raise NotFound(uri, f"no disk can hold such a name: {error}") from error


# --- Listing


def list_objects(root: str) -> Iterator[ObjectInfo]:
    """Every object below `root`, sorted by URI (code points), in bounded memory.

    Hidden files are objects too. Not listed: folders, the empty `.../` keys some tools write to mark one,
    devices and pipes, and symbolic links to folders or out of `root` (their number is logged).

    Raises:
        NotFound: The folder or bucket does not exist, or no key begins with the prefix.
        AccessDenied: The store, or any folder below `root`, refuses to be listed.
        Unreachable: The store does not answer.
    """
    root = absolute(root)
    if is_s3(root):
        yield from sort_bounded(_list_s3(root), key=_uri_of)
    else:
        yield from _list_local(root)


def _uri_of(info: ObjectInfo) -> str:
    return info.uri


def _list_s3(root: str) -> Iterator[ObjectInfo]:
    bucket, key = uris.split(root)
    prefix = uris.prefix(key)
    seen = False
    with s3.s3_errors(root):
        for page in s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                seen = True
                if not (item["Key"].endswith("/") and item["Size"] == 0):
                    yield ObjectInfo(
                        f"{uris.S3}{bucket}/{item['Key']}",
                        item["Size"],
                        _etag(item.get("ETag")),
                        _utc(item["LastModified"]),
                    )
    if not seen and prefix:
        raise NotFound(root, f"no key in bucket {bucket!r} begins with {prefix!r}")


def _list_local(root: str) -> Iterator[ObjectInfo]:
    walk = Walk(uris.local_path(root))
    undecodable: list[ObjectInfo] = []
    with _local_errors(root):
        for path, status in walk:
            info = _local_info(uris.local_uri(path), status)
            # Escaped names begin with "file://", which sorts after every absolute path.
            if info.uri.startswith(uris.FILE):
                undecodable.append(info)
            else:
                yield info
    yield from sorted(undecodable, key=_uri_of)
    if walk.left_out:
        log.warning("%d symbolic links below %s lead outside it or nowhere: not listed.", walk.left_out, root)


def _local_info(uri: str, status: os.stat_result) -> ObjectInfo:
    modified = datetime.fromtimestamp(status.st_mtime_ns // 1_000_000_000, UTC)
    modified = modified.replace(microsecond=status.st_mtime_ns // 1_000 % 1_000_000)
    return ObjectInfo(uri, status.st_size, _local_etag(status), modified)


def _local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _etag(value: str | None) -> str | None:
    return value.strip('"') if value else None


def _utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


def list_names(root: str) -> list[str]:
    """The names of the objects below `root`, relative to it, sorted; raises as `list_objects` does."""
    root = absolute(root)
    start = len(uris.local_path(root).removesuffix("/")) + 1
    return sorted(uris.local_path(found.uri)[start:] for found in list_objects(root))


def is_folder(uri: str) -> bool:
    """True if at least one object lies below `uri`."""
    uri = absolute(uri)
    try:
        found = _list_s3(uri) if is_s3(uri) else _list_local(uri)
        return next(iter(found), None) is not None
    except NotFound:
        return False


def stat(uri: str) -> ObjectInfo:
    """What the store knows of one object, without its content, by one HEAD; raises as `fetch` does."""
    uri = absolute(uri)
    if is_s3(uri):
        bucket, key = uris.split(uri)
        with s3.s3_errors(uri):
            head = s3.client().head_object(Bucket=bucket, Key=key)
        return ObjectInfo(uri, head["ContentLength"], _etag(head.get("ETag")), _utc(head["LastModified"]))
    with _local_errors(uri):
        status = os.stat(uris.local_path(uri))  # noqa: PTH116 - names may hold undecodable bytes
    if not stat_modes.S_ISREG(status.st_mode):
        raise NotFound(uri, "not a regular file")
    return _local_info(uri, status)


def exists(uri: str) -> bool:
    """True if there is an object at `uri`; a folder is none.

    Raises:
        AccessDenied, Unreachable: It cannot be told.
    """
    if is_s3(uri) and not uris.split(uri)[1]:
        return False
    try:
        stat(uri)
    except NotFound:
        return False
    return True


def check_bucket(uri: str) -> None:
    """Ask for the bucket of an S3 URI before long work that is to end there; local URIs need no bucket.

    Raises:
        NotFound, Unreachable: There is no such bucket, or no store. A key that may not ask is no error.
    """
    if is_s3(uri):
        bucket, _ = uris.split(uri)
        with suppress(AccessDenied), s3.s3_errors(uri):
            s3.client().head_bucket(Bucket=bucket)


# --- Reading


def fetch(uri: str, max_bytes: int | None = None) -> Fetched:
    """An object's content and etag, by one GET.

    Args:
        uri: Local or S3.
        max_bytes: The size is compared with this before any of the body is read.

    Raises:
        NotFound, AccessDenied, Unreachable, TooLarge: See this module's head.
    """
    return _fetch_s3(uri, max_bytes) if is_s3(uri) else _fetch_local(uri, max_bytes)


def _fetch_s3(uri: str, max_bytes: int | None) -> Fetched:
    bucket, key = uris.split(uri)

    def once() -> Fetched:
        answer = s3.client().get_object(Bucket=bucket, Key=key)
        with closing(answer["Body"]) as body:
            if max_bytes is not None and answer["ContentLength"] > max_bytes:
                raise _too_large(uri, answer["ContentLength"], max_bytes)
            return Fetched(_read_in_time(uri, body, answer["ContentLength"]), _etag(answer.get("ETag")))

    with s3.s3_errors(uri):
        return _repeat_body(once)


def _read_in_time(uri: str, body: StreamingBody, length: int) -> bytes:
    """The whole body. botocore's own `read` waits for each packet anew, and so for ever where they trickle."""
    deadline = time.monotonic() + BODY_TIMEOUT_S
    pieces = bytearray()
    # Its `read1` returns what one packet brought; the wrapper has no such call.
    stream = body._raw_stream  # type: ignore[attr-defined]
    while piece := stream.read1(1 << 20):
        pieces += piece
        if time.monotonic() > deadline:
            raise Unreachable(uri, f"{len(pieces)} of {length} bytes within {BODY_TIMEOUT_S:g} s")
    if len(pieces) != length:
        raise boto_errors.IncompleteReadError(actual_bytes=len(pieces), expected_bytes=length)
    return bytes(pieces)


def _repeat_body(once: Callable[[], T]) -> T:
    """`once()`, repeated when the connection breaks within the body."""
    for _ in range(BODY_ATTEMPTS - 1):
        try:
            return once()
        except (
            boto_errors.IncompleteReadError,
            boto_errors.ReadTimeoutError,
            boto_errors.ResponseStreamingError,
            urllib3.exceptions.ProtocolError,
        ) as error:
            log.info("A body broke off (%s): once more.", error)
    return once()


def _fetch_local(uri: str, max_bytes: int | None) -> Fetched:
    with _local_errors(uri), _open_regular(uri) as file:
        status = os.fstat(file.fileno())
        if max_bytes is not None and status.st_size > max_bytes:
            raise _too_large(uri, status.st_size, max_bytes)
        data = file.read() if max_bytes is None else file.read(max_bytes + 1)
        if max_bytes is not None and len(data) > max_bytes:  # it grew meanwhile
            raise _too_large(uri, len(data), max_bytes)
        return Fetched(data, _local_etag(status))


def _open_regular(uri: str) -> IO[bytes]:
    # A pipe in the archive must not make a worker wait for a writer.
    descriptor = os.open(uris.local_path(uri), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat_modes.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotFound(uri, "not a regular file")
    return os.fdopen(descriptor, "rb")


def _too_large(uri: str, size: int, max_bytes: int) -> TooLarge:
    return TooLarge(uri, f"{size} bytes, more than the limit of {max_bytes}")


def fetch_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`, or as many as there are; raises as `fetch` does."""
    if length <= 0:
        return b""
    if not is_s3(uri):
        with _local_errors(uri), _open_regular(uri) as file:
            file.seek(offset)
            return file.read(length)
    bucket, key = uris.split(uri)

    def once() -> bytes:
        answer = s3.client().get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-{offset + length - 1}")
        with closing(answer["Body"]) as body:
            data: bytes = body.read()
        # RFC 9110 14.2: a server may ignore Range and send everything.
        whole = "ContentRange" not in answer
        return data[offset : offset + length] if whole else data

    with s3.s3_errors(uri):
        try:
            data: bytes = _repeat_body(once)
        except boto_errors.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:  # begins at or after the end
                return b""
            raise
    return data


def read_bytes(uri: str) -> bytes:
    """An object's content; raises as `fetch` does."""
    return fetch(uri).data


# --- Writing


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole or not at all; folders on the way are made. What was there before is replaced."""
    if is_s3(uri):
        bucket, key = uris.split(uri)
        with s3.s3_errors(uri):
            s3.client().put_object(Bucket=bucket, Key=key, Body=data)
        return
    with _local_errors(uri), _replacing(Path(uris.local_path(uri))) as file:
        file.write(data)


def create_bytes(uri: str, data: bytes) -> None:
    """As `write_bytes`, where no object is yet.

    Raises:
        Exists: There is one.
    """
    if is_s3(uri):
        bucket, key = uris.split(uri)
        with s3.s3_errors(uri):
            s3.client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        return
    path = Path(uris.local_path(uri))
    with _local_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)


def patiently(call: Callable[[], T], patience_s: float | None = None) -> T:
    """`call()`, repeated while its store does not answer, for up to `patience_s` (PATIENCE_S by default).

    Raises:
        Unreachable: It did not answer in all that time.
    """
    deadline = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
    pause_s = _PAUSE_S
    while True:
        try:
            return call()
        except Unreachable as error:
            if time.monotonic() >= deadline:
                raise
            log.warning("%s. Waiting for it.", error)
            time.sleep(pause_s * random.uniform(0.5, 1.5))  # not all workers at once
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` if the block ends well, and is on the disk by then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
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
        os.fsync(folder)  # the new name, too, must survive a power cut
    finally:
        os.close(folder)


def delete(uri: str) -> None:
    """Remove an object; none at `uri` is no error."""
    if is_s3(uri):
        bucket, key = uris.split(uri)
        with s3.s3_errors(uri):
            s3.client().delete_object(Bucket=bucket, Key=key)
        return
    with _local_errors(uri):
        Path(uris.local_path(uri)).unlink(missing_ok=True)


def upload_file(local: Path, uri: str) -> None:
    """Copy a local file to `uri`, in several parts where it is large."""
    with _local_errors(str(local)), local.open("rb") as source:
        if is_s3(uri):
            bucket, key = uris.split(uri)
            with s3.s3_errors(uri):
                s3.client().upload_fileobj(source, bucket, key)
        else:
            with _local_errors(uri), _replacing(Path(uris.local_path(uri))) as file:
                shutil.copyfileobj(source, file)


def upload_folder(local: Path, root: str) -> None:
    """Copy every file below the folder `local` to the same name below `root`."""
    for name in list_names(str(local)):
        upload_file(local / name, join(root, name))


_ESCAPING = re.compile(r"(^|/)(\.{0,2})(/|$)")


def download_folder(root: str, local: Path) -> None:
    """Copy every object below `root` to the same name below the folder `local`.

    Raises:
        StorageError: A key's name is no path below a folder (`..`, `.` or empty components).
    """
    for name in list_names(root):
        uri = join(root, name)
        if _ESCAPING.search(name):
            raise StorageError(uri, "its name would leave the folder it is copied to")
        with _local_errors(uri), _replacing(local / name) as file:
            if is_s3(uri):
                bucket, key = uris.split(uri)
                with s3.s3_errors(uri):
                    s3.client().download_fileobj(bucket, key, file)
            else:
                with _open_regular(uri) as source:
                    shutil.copyfileobj(source, file)


# --- pyarrow


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem of a URI under the same client policy, and the path it knows the URI by.

    Credentials are looked up where it is used, not carried along: it may be pickled to a worker and logged.
    """
    uri = absolute(uri)
    if not is_s3(uri):
        return fs.LocalFileSystem(), uris.local_path(uri)
    options: dict[str, Any] = {
        "connect_timeout": s3.CONNECT_TIMEOUT_S,
        "request_timeout": s3.READ_TIMEOUT_S,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=s3.ATTEMPTS),
        "allow_delayed_open": True,  # a small object is one request that can be tried again, and not three
    }
    if region := s3.region():
        options["region"] = region
    if endpoint := s3.endpoint():
        options["endpoint_override"] = endpoint
    return fs.S3FileSystem(**options), uri.removeprefix(uris.S3)
