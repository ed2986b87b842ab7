"""Objects by URI, on a local disk or in any S3-compatible store: the face of this package.

A URI is `s3://bucket/key` or an absolute path, without a slash at its end.
What a person writes is brought into this spelling by `absolute`, once, where it enters.
Every other function takes it as it is, and refuses a relative path with a StorageError.
S3 is configured by the usual AWS variables (`AWS_ENDPOINT_URL`, keys, region, profile).
"""

from cluster.errors import AccessDenied, Exists, Full, KeysRefused, NotFound, StorageError, TooLarge, Unreachable
from cluster.storage.contract import Fetched, LeftOut, ObjectInfo
from cluster.storage.retries import PATIENCE_S, patiently
from cluster.storage.store import (
    beginning_with,
    check_bucket,
    create_bytes,
    delete,
    exists,
    fetch,
    fetch_piece,
    fetch_range,
    filesystem,
    holds_other,
    is_folder,
    list_names,
    list_objects,
    read_bytes,
    stat,
    upload_file,
    write_bytes,
)
from cluster.storage.uris import absolute, is_s3, is_temporary, join, parent

__all__ = [
    "PATIENCE_S",
    "AccessDenied",
    "Exists",
    "Fetched",
    "Full",
    "KeysRefused",
    "LeftOut",
    "NotFound",
    "ObjectInfo",
    "StorageError",
    "TooLarge",
    "Unreachable",
    "absolute",
    "beginning_with",
    "check_bucket",
    "create_bytes",
    "delete",
    "exists",
    "fetch",
    "fetch_piece",
    "fetch_range",
    "filesystem",
    "holds_other",
    "is_folder",
    "is_s3",
    "is_temporary",
    "join",
    "list_names",
    "list_objects",
    "parent",
    "patiently",
    "read_bytes",
    "stat",
    "upload_file",
    "write_bytes",
]
