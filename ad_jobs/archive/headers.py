"""The headers of an archive's objects, from the first bytes of each: in threads here, or on a cluster's workers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from ad_jobs.archive import containers_names as containers
from ad_jobs.archive.fetching import Fetcher
from ad_jobs.errors import ErrorCode, ImageError, RetroscanError
from ad_jobs.images.decode import read_header
from ad_jobs.images.sniff import kind_of
from ad_jobs.schema import storable_values

# Of a first look: nearly all headers end before, and so do small objects.
HEADER_BYTES = 64 * 1024
# Enhanced multi-frame objects carry one item a frame before the pixels.
MAX_HEADER_BYTES = 32 * 1024 * 1024
# By how much the next look is longer.
GROWTH = 8
# Requests under way in one process: a store's latency is many headers long.
HEADER_THREADS = 32
# Objects of one call on a cluster.
CALL_OBJECTS = 512

# Reading is Python's work, one thread's at a time anyway, and keeps libraries quiet for the whole process meanwhile.
_READING = threading.Lock()
# What one thread got tells the others that the store answers.
_FETCHER = Fetcher()


class Listed(NamedTuple):
    """An object as it was listed; `bytes` is None where a list names it and the store did not have it."""

    uri: str
    bytes: int | None
    # Which of a container's member says where it lies.
    etag: str | None = None

    @property
    def size(self) -> int:
        """How many bytes it has: more than are read of a header where nobody says, as gzip does not."""
        packed = any(containers.kind_of(holder) is containers.Kind.GZIP for holder, _ in containers.splits(self.uri))
        return MAX_HEADER_BYTES + 1 if self.bytes is None or packed else self.bytes


Columns = dict[str, Any]
Read = Callable[[Sequence[Listed]], Iterator[Columns]]


def header_columns(listed: Listed, demographics: bool = False) -> Columns:
    """What schema.MANIFEST_HEADERS tells of an object but its `group`, by reading as few of its bytes as it takes.

    Only `kind` if it is no DICOM; `header_error` says why a header could not be read. UIDs are plain.
    With `demographics` also the columns of schema.DEMOGRAPHICS.

    Raises:
        JobError: the store refuses the credentials as such, or was away for longer than `storage.PATIENCE_S`.
    """
    size = listed.size
    try:
        head = _beginning(listed, HEADER_BYTES)
        kind = kind_of(head)
        if kind != "dicom":
            return {"kind": kind}
        asked = HEADER_BYTES
        found = _read(head, size, demographics)
        while found["header_error"] == ErrorCode.TRUNCATED and len(head) == asked < MAX_HEADER_BYTES:
            asked *= GROWTH
            head = _beginning(listed, asked, head)
            found = _read(head, size, demographics)
    except ImageError as error:
        return {"header_error": error.code.value}
    return storable_values(found)


def _beginning(listed: Listed, length: int, head: bytes = b"") -> bytes:
    """The first `length` bytes of an object; `head` is what came of them before, and comes again of members alone."""
    if containers.known(listed.etag) is not None:
        head = b""
        data, error = _FETCHER.get_beginning(listed.uri, length, listed.etag)
    else:
        data, error = _FETCHER.get_range(listed.uri, len(head), length - len(head))
    if data is None:
        assert error is not None
        raise error
    return head + data


def _read(head: bytes, size: int, demographics: bool) -> Columns:
    with _READING:
        return read_header(head, size, demographics=demographics)


@contextmanager
def header_reader(demographics: bool, address: str | None) -> Iterator[Read]:
    """What gives the header columns of objects, in their order, as they come.

    On the cluster at `address` or RAY_ADDRESS, if either is set; else by threads of this process.

    Raises:
        ClusterError: no cluster answers at the address, or its workers failed.
    """
    read = partial(header_columns, demographics=demographics)
    if address or os.environ.get("RAY_ADDRESS"):
        # Ray stands behind them, which threads do without.
        from cluster.failures import failures
        from cluster.mapping import cluster_map

        with failures("index", RetroscanError), cluster_map(partial(_read_all, read), address) as mapped:
            yield lambda objects: chain.from_iterable(mapped(_calls(objects)))
        return
    with ThreadPoolExecutor(HEADER_THREADS, thread_name_prefix="headers") as pool:
        yield lambda objects: pool.map(read, objects)


def _calls(objects: Sequence[Listed]) -> Iterator[Sequence[Listed]]:
    for start in range(0, len(objects), CALL_OBJECTS):
        yield objects[start : start + CALL_OBJECTS]


def _read_all(read: Callable[[Listed], Columns], objects: Sequence[Listed]) -> list[Columns]:
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        return list(pool.map(read, objects))
