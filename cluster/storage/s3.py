"""Objects in S3: `contract` by the client of `s3_client`, repeated as `retries` says."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from operator import attrgetter
from typing import IO

import botocore.exceptions as boto_errors
from botocore.response import StreamingBody
from pyarrow import fs

from cluster.counting import counted
from cluster.errors import AccessDenied, Exists, NotFound, Unreachable
from cluster.storage import retries, s3_client, uris
from cluster.storage.contract import Fetched, LeftOut, ObjectInfo, check_size
from cluster.storage.listing import sort_bounded
from cluster.storage.s3_client import s3_errors

# Longest time one body may take: its parts may each come in time, and the last one never.
BODY_TIMEOUT_S = 300.0


def list_objects(root: str, left_out: Counter[LeftOut] | None) -> Iterator[ObjectInfo]:  # noqa: ARG001 - no links here
    """Every object below the prefix, but for the empty `.../` keys that some tools write to mark a folder."""
    return sort_bounded(found(root), key=attrgetter("uri"))


def found(root: str) -> Iterator[ObjectInfo]:
    """The same in the server's order."""
    bucket, key = uris.split(root)
    prefix = uris.prefix(key)
    seen = False
    with s3_errors(root):
        for page in s3_client.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
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


def beginning_with(uri: str) -> list[str]:
    """Keys with this prefix and no further slash."""
    bucket, key = uris.split(uri)
    with s3_errors(uri):
        pages = s3_client.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key, Delimiter="/")
        return [f"{uris.S3}{bucket}/{item['Key']}" for page in pages for item in page.get("Contents", [])]


def stat(uri: str) -> ObjectInfo:
    """What one HEAD tells."""
    bucket, key = uris.split(uri)
    with s3_errors(uri):
        head = s3_client.client().head_object(Bucket=bucket, Key=key)
    return ObjectInfo(uri, head["ContentLength"], _etag(head.get("ETag")), _utc(head["LastModified"]))


def check_bucket(uri: str) -> None:
    """Ask for the bucket; a key that may not ask is no error."""
    bucket, _ = uris.split(uri)
    with suppress(AccessDenied), s3_errors(uri):
        s3_client.client().head_bucket(Bucket=bucket)


def fetch(uri: str, max_bytes: int | None, within: str | None) -> Fetched:  # noqa: ARG001 - no links here
    """Content and etag of one GET, whose announced length is compared with `max_bytes` before the body is read."""
    bucket, key = uris.split(uri)

    def once() -> Fetched:
        answer = s3_client.client().get_object(Bucket=bucket, Key=key)
        with closing(answer["Body"]) as body:
            check_size(uri, answer["ContentLength"], max_bytes)
            return Fetched(_read_in_time(uri, body, answer["ContentLength"]), _etag(answer.get("ETag")))

    with s3_errors(uri):
        return retries.whole_body(once)


def _read_in_time(uri: str, body: StreamingBody, length: int) -> bytes:
    """The whole body; botocore's own `read` waits for each packet anew, and so for ever where they trickle."""
    deadline = time.monotonic() + BODY_TIMEOUT_S
    pieces = bytearray()
    # Its `read1` returns what one packet brought; the wrapper has no such call.
    stream = body._raw_stream  # type: ignore[attr-defined]
    while piece := stream.read1(1 << 20):
        pieces += piece
        if time.monotonic() > deadline:
            raise Unreachable(uri, f"{len(pieces)} of {counted(length, 'byte')} within {BODY_TIMEOUT_S:g} s")
    if len(pieces) != length:
        raise boto_errors.IncompleteReadError(actual_bytes=len(pieces), expected_bytes=length)
    return bytes(pieces)


def fetch_piece(uri: str, offset: int, length: int, within: str | None) -> Fetched:  # noqa: ARG001 - no links here
    """Part of the content, by one GET with a Range; empty, and without etag, where it begins at or after the end."""
    bucket, key = uris.split(uri)

    def once() -> Fetched:
        answer = s3_client.client().get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-{offset + length - 1}")
        with closing(answer["Body"]) as body:
            data: bytes = body.read()
        # RFC 9110 14.2: a server may ignore Range and send everything.
        part = data if "ContentRange" in answer else data[offset : offset + length]
        return Fetched(part, _etag(answer.get("ETag")))

    with s3_errors(uri):
        try:
            return retries.whole_body(once)
        except boto_errors.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:
                return Fetched(b"", None)
            raise


def write_bytes(uri: str, data: bytes) -> None:
    """One PUT."""
    bucket, key = uris.split(uri)
    with s3_errors(uri):
        s3_client.client().put_object(Bucket=bucket, Key=key, Body=data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Two PUTs with `If-None-Match: *`: a store that knows what that is refuses the second one.

    Others refuse the header (501), or take the request for a plain PUT.
    """
    bucket, key = uris.split(uri)
    with s3_errors(uri):
        try:
            s3_client.client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except boto_errors.ClientError as error:
            if error.response["Error"].get("Code") != "NotImplemented":
                raise
            s3_client.client().put_object(Bucket=bucket, Key=key, Body=data)
            return False
    try:
        with s3_errors(uri):
            s3_client.client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except Exists:
        return True
    return False


def delete(uri: str) -> None:
    """One DELETE, which S3 answers alike whether there was an object or not."""
    bucket, key = uris.split(uri)
    with s3_errors(uri):
        s3_client.client().delete_object(Bucket=bucket, Key=key)


def upload(source: IO[bytes], uri: str) -> None:
    """One PUT, or a multipart upload where the file is large."""
    bucket, key = uris.split(uri)
    with s3_errors(uri):
        s3_client.client().upload_fileobj(source, bucket, key)


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """pyarrow's client, and bucket and key as one path."""
    return s3_client.filesystem(), uri.removeprefix(uris.S3)


def _etag(value: str | None) -> str | None:
    return value.strip('"') if value else None


def _utc(value: datetime) -> datetime:
    return value.astimezone(UTC)
