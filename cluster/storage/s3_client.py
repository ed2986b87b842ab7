"""One S3 client policy: endpoint, timeouts, addressing, and botocore's many errors as this project's few.

Retries are decided in `cluster.storage.retries`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions as boto_errors
import botocore.session
import urllib3.exceptions
from botocore.config import Config
from pyarrow import fs

from cluster.errors import AccessDenied, Exists, Full, KeysRefused, NotFound, StorageError, Unreachable
from cluster.storage import retries

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 5.0
# Of one process: more threads than this would wait for each other.
CONNECTIONS = 64

_clients: dict[tuple[str, ...], S3Client] = {}
_filesystems: dict[tuple[str, ...], fs.S3FileSystem] = {}
_clients_lock = threading.Lock()


def endpoint() -> str | None:
    """The endpoint named by the environment; None for AWS itself or what the profile says."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def region() -> str | None:
    """The region named by the environment, if any."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def client() -> S3Client:
    """The process's S3 client, safe to share between threads.

    Made anew after a fork and when an AWS variable has changed.
    """
    key = _of_process()
    with _clients_lock:
        if key not in _clients:
            _clients.clear()
            _clients[key] = _new_client()
        return _clients[key]


def _of_process() -> tuple[str, ...]:
    """What a client hangs on."""
    aws = tuple(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("AWS_"))
    return (str(os.getpid()), *aws)


def probe(bucket: str | None = None) -> None:
    """Ask the store one cheap signed question, about `bucket` or for its buckets, and wait only briefly.

    Raises:
        StorageError: what the store, or the way to it, has against it.
    """
    with s3_errors(f"s3://{bucket}" if bucket else endpoint() or "s3://"):
        client = _new_client(
            connect_timeout=PROBE_TIMEOUT_S, read_timeout=PROBE_TIMEOUT_S, retries={"total_max_attempts": 1}
        )
        if bucket:
            # Of a HEAD that is refused nobody says why.
            client.list_objects_v2(Bucket=bucket, MaxKeys=1)
        else:
            client.list_buckets()


def _new_client(**options: Any) -> S3Client:
    """A client by the policy; `options` of botocore's Config win over it."""
    core = botocore.session.get_session()
    session = boto3.session.Session(botocore_session=core)
    custom = endpoint() or core.get_scoped_config().get("endpoint_url")
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=CONNECTIONS,
        retries=retries.of_botocore(),  # type: ignore[arg-type]
        # A bucket as host name needs wildcard DNS, which a store of one's own seldom has.
        s3={"addressing_style": "path" if custom else "auto"},
        # Checksum trailers by default are newer than many S3-compatible servers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client("s3", endpoint_url=endpoint(), region_name=region(), config=config.merge(Config(**options)))


def filesystem() -> fs.S3FileSystem:
    """pyarrow's own client under the same policy; the process has one, so that its connections are used again.

    Credentials are looked up where it is used, not carried along: it may be pickled to a worker and logged.
    """
    key = _of_process()
    with _clients_lock:
        if key not in _filesystems:
            _filesystems.clear()
            _filesystems[key] = _new_filesystem()
        return _filesystems[key]


def _new_filesystem() -> fs.S3FileSystem:
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": READ_TIMEOUT_S,
        "retry_strategy": retries.of_pyarrow(),
        # A small object is one request that can be tried again, and not three.
        "allow_delayed_open": True,
    }
    if named := region():
        options["region"] = named
    if named := endpoint():
        options["endpoint_override"] = named
    return fs.S3FileSystem(**options)


# Codes whose HTTP status says something else: an expired token is a 400, an invalid bucket name too.
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled"})
_KEYS_REFUSED = frozenset(
    {
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"})
_MISSING = frozenset({"InvalidBucketName", "NoSuchBucket", "NoSuchKey"})
_BUSY = frozenset({"RequestTimeout", "SlowDown", "Throttling"})


@contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """A block in which whatever botocore raises becomes a StorageError about `uri`."""
    try:
        yield
    except boto_errors.ClientError as error:
        raise _of_answer(uri, error) from error
    except (
        boto_errors.NoCredentialsError,
        boto_errors.PartialCredentialsError,
        boto_errors.CredentialRetrievalError,
        boto_errors.TokenRetrievalError,
        boto_errors.SSOError,
        boto_errors.ProfileNotFound,
    ) as error:
        raise KeysRefused(uri, str(error)) from error
    except boto_errors.ParamValidationError as error:
        # What follows the colon is a regular expression.
        reason = str(error).splitlines()[-1].partition(": ")[0]
        raise NotFound(uri, f"no store can hold such a name: {reason}") from error
    except (
        boto_errors.ConnectionError,
        boto_errors.HTTPClientError,
        boto_errors.IncompleteReadError,
        boto_errors.InvalidRegionError,
        urllib3.exceptions.HTTPError,
    ) as error:
        raise Unreachable(uri, _without_path(error)) from error
    except boto_errors.BotoCoreError as error:
        raise StorageError(uri, _without_path(error)) from error
    except UnicodeError as error:
        raise NotFound(uri, f"no store can hold such a name: {error}") from error
    except ValueError as error:
        # botocore's answer to a malformed endpoint.
        raise Unreachable(uri, f"{error} (AWS_ENDPOINT_URL={endpoint()})") from error


def _without_path(error: Exception) -> str:
    """What an error says, endpoints without the bucket and key that were asked of them: keys may hold names."""
    return re.sub(r"(https?://[^/\s\"']+)[^\s\"']*", r"\1", str(error))


def _of_answer(uri: str, error: boto_errors.ClientError) -> StorageError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    message = str(error.response.get("Error", {}).get("Message", "")) or "no reason given"
    detail = f"{code or status}: {message} (HTTP {status})"
    if code in _MISSING or status == 404:
        return NotFound(uri, detail)
    if code in _KEYS_REFUSED:
        return KeysRefused(uri, detail)
    if code in _FULL or status == 507:
        return Full(uri, detail)
    if code in ("PreconditionFailed", "ConditionalRequestConflict") or status == 412:
        return Exists(uri, detail)
    if code in _DENIED or status in (401, 403):
        return AccessDenied(uri, detail)
    if status >= 500 or code in _BUSY:
        return Unreachable(uri, detail)
    return StorageError(uri, detail)
