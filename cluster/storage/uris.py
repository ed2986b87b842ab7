"""One spelling for every object, on a local disk or in S3.

A local URI is a plain absolute path; `file://` with percent-escapes is accepted, and is how a name that is no valid
Unicode is written down.
An S3 URI is `s3://bucket/key`; the key is taken literally: it has no escapes, and `..`, `#`, `?` and `//` in it mean
themselves.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from cluster.errors import NotFound

S3 = "s3://"
FILE = "file://"
# How the names of files end that are being written.
TEMPORARY = ".tmp"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_s3(uri: str) -> bool:
    """True for `s3://...`."""
    return uri.startswith(S3)


def is_foreign(uri: str) -> bool:
    """True for a URI of a scheme other than s3 and file."""
    return bool(_SCHEME.match(uri)) and not uri.startswith((S3, FILE))


def absolute(uri: str) -> str:
    """The URI in its one spelling: S3 as given, local as an absolute path; without a trailing slash.

    `..` in a local path is resolved as the operating system does it, through links; in a key it is a name.
    """
    if is_s3(uri):
        return uri.removesuffix("/") if len(uri) > len(S3) else uri
    path = Path(local_path(uri)).absolute()
    if ".." in path.parts:
        last = len(path.parts) - path.parts[::-1].index("..")
        path = Path(*path.parts[:last]).resolve().joinpath(*path.parts[last:])
    # pathlib keeps two leading slashes.
    return local_uri("/" + str(path).lstrip("/"))


def join(root: str, *parts: str) -> str:
    """`root` with `parts` below it, each kept as it is; empty parts are left out."""
    below = [part for part in parts if part]
    if is_s3(root):
        return "/".join([root.removesuffix("/"), *below])
    path = local_path(root)
    return local_uri("/".join([path.removesuffix("/"), *below]) if below else path)


def parent(uri: str) -> str:
    """The folder that an object lies in."""
    if is_s3(uri):
        return uri.rpartition("/")[0]
    return local_uri(str(Path(local_path(uri)).parent))


def lies_below(uri: str, root: str) -> bool:
    """Whether an object's URI says that it lies below a folder; links are not followed.

    >>> lies_below("/a/b/../c", "/a/b"), lies_below("s3://a/b/../c", "s3://a/b")
    (False, True)
    """
    if is_s3(root):
        return uri.startswith(root.removesuffix("/") + "/")
    path = local_path(uri)
    return path.startswith(local_path(root).removesuffix("/") + "/") and ".." not in path.split("/")


def local_path(uri: str) -> str:
    """The local path of a URI, undecodable bytes as surrogate escapes."""
    if uri.startswith(FILE):
        return os.fsdecode(unquote_to_bytes(uri.removeprefix(FILE)))
    return uri


def local_uri(path: str) -> str:
    """The URI of a local path: the path itself wherever it is valid Unicode."""
    try:
        path.encode()
    except UnicodeEncodeError:
        # A name in another encoding: only escapes can be stored as text.
        return FILE + quote_from_bytes(os.fsencode(path))
    return path


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an S3 URI.

    Raises:
        NotFound: it names no bucket.
    """
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if not bucket:
        raise NotFound(uri, "the URI names no bucket (s3://bucket/key)")
    return bucket, key


def prefix(key: str) -> str:
    """What the keys of all objects below the folder `key` begin with."""
    return key + "/" if key else ""


def is_temporary(uri: str) -> bool:
    """Whether it is what a killed process left of an object that it was writing to a disk."""
    return uri.endswith(TEMPORARY)
