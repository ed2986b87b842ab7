"""Containers in a listing: the members of a ZIP, a TAR and a .gz are objects of their own, in the order of their URIs.

A container is taken whole or not at all: one that is damaged, truncated or over a limit stands in the listing as one
object, its own, which fails with the reason when it is fetched (`objects`).
Containers in containers are members like others, which fail.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import attrgetter

from ad_jobs.archive import containers_gzip, containers_tar, containers_zip
from ad_jobs.archive.containers_names import (
    Address,
    Entry,
    Kind,
    NotAContainer,
    gzip_member,
    kind_of,
    member_etag,
    member_uri,
)
from ad_jobs.archive.containers_reading import Pieces, PlainTape, Replaced, within_limits
from ad_jobs.errors import ImageError, UsageError
from cluster import storage
from cluster.storage.listing import sort_bounded

log = logging.getLogger("retroscan.sources")


def entries(container: storage.ObjectInfo, within: str | None) -> Iterator[Entry]:
    """The entries of a ZIP or TAR in its own order, in bounded memory.

    Raises:
        NotAContainer: its content is not what its name says.
        ImageError: it is truncated, damaged, or over a limit.
        StorageError: as `storage.fetch`.
    """
    return within_limits(_entries(container, within), container.bytes)


def _entries(container: storage.ObjectInfo, within: str | None) -> Iterator[Entry]:
    uri, size, etag, _ = container
    kind = kind_of(uri)
    if kind is Kind.ZIP:
        yield from containers_zip.walk(Pieces(uri, size, etag, within))
    elif kind is Kind.TAR:
        yield from containers_tar.walk(PlainTape(Pieces(uri, size, etag, within)))
    elif kind is Kind.TAR_GZIP:
        tape = containers_gzip.UnpackingTape(containers_gzip.stream(uri, size, etag, within))
        try:
            yield from containers_tar.walk(tape)
        except NotAContainer as error:
            if not tape.position:
                raise
            raise containers_tar.damaged() from error
        tape.drain()
    else:
        raise NotAContainer


def with_members(
    found: Iterable[storage.ObjectInfo], left_out: Counter[storage.LeftOut], within: str | None
) -> Iterator[storage.ObjectInfo]:
    """A listing, sorted by URI, with members in the place of their containers, still sorted, and each URI once.

    `left_out` counts at the end what of the containers is no object.

    Raises:
        StorageError: a store fails; a container that is refused or gone is an object, whose row says so.
    """
    refused = 0
    last: str | None = None
    # Of opened containers: the next member, and those after it. A name such as `a.zip 2` comes before `a.zip!/`.
    opened: list[tuple[str, storage.ObjectInfo, Iterator[storage.ObjectInfo]]] = []

    def before(uri: str | None) -> Iterator[storage.ObjectInfo]:
        while opened and (uri is None or opened[0][0] < uri):
            _, member, others = heapq.heappop(opened)
            _push(opened, others)
            yield member

    def merged() -> Iterator[storage.ObjectInfo]:
        nonlocal refused
        for info in found:
            yield from before(info.uri)
            if kind_of(info.uri) is None:
                yield info
                continue
            try:
                _push(opened, members(info, left_out, within))
            except NotAContainer:
                yield info
            except (ImageError, Replaced):
                refused += 1
                yield info
            except storage.KeysRefused:
                raise
            except (storage.AccessDenied, storage.NotFound):
                yield info
        yield from before(None)

    for info in merged():
        # A file of the very name of a member comes first, and is the one that is read by that name.
        if info.uri == last:
            left_out[storage.LeftOut.REPLACED] += 1
            continue
        last = info.uri
        yield info
    if refused:
        log.warning("listing: containers that cannot be opened, each one object that fails: %d.", refused)


def _push(
    opened: list[tuple[str, storage.ObjectInfo, Iterator[storage.ObjectInfo]]], others: Iterator[storage.ObjectInfo]
) -> None:
    first = next(others, None)
    if first is not None:
        heapq.heappush(opened, (first.uri, first, others))


def members(
    container: storage.ObjectInfo, left_out: Counter[storage.LeftOut], within: str | None
) -> Iterator[storage.ObjectInfo]:
    """The members of a container, sorted by URI; all of it was read when the first one comes.

    Of several with one name the last one counts, as for who unpacks it.

    Raises:
        NotAContainer, ImageError, StorageError: as `entries`, before the first member.
    """
    uri, size, etag, modified = container
    if kind_of(uri) is Kind.GZIP:
        # Not opened: how many bytes it holds only its content tells.
        place = Address(0, size, 0, 0)
        yield storage.ObjectInfo(member_uri(uri, gzip_member(uri)), size, member_etag(etag, place), modified)
        return
    counted: Counter[storage.LeftOut] = Counter()

    def infos() -> Iterator[storage.ObjectInfo]:
        for entry in entries(container, within):
            if entry.left_out is not None:
                counted[entry.left_out] += 1
            elif entry.address is not None:
                place = entry.address
                yield storage.ObjectInfo(member_uri(uri, entry.name), place.size, member_etag(etag, place), modified)

    in_order = sort_bounded(infos(), key=attrgetter("uri"))
    member = next(in_order, None)
    if member is None:
        counted[storage.LeftOut.EMPTY_CONTAINER] += 1
    while member is not None:
        following = next(in_order, None)
        if following is not None and following.uri == member.uri:
            counted[storage.LeftOut.REPLACED] += 1
        else:
            yield member
        member = following
    left_out.update(counted)


def members_of_source(
    container: storage.ObjectInfo, left_out: Counter[storage.LeftOut], within: str | None
) -> Iterator[storage.ObjectInfo]:
    """The members of a container that a user named as SOURCE.

    Raises:
        UsageError: it cannot be opened.
        StorageError: as `entries`.
    """
    try:
        yield from members(container, left_out, within)
    except (NotAContainer, ImageError) as error:
        reason = error.detail if isinstance(error, ImageError) else "it is none, whatever its name says"
        raise UsageError(
            "A SOURCE that is a ZIP, TAR or .gz can be read whole.",
            f"{container.uri}: {reason}",
            "Fetch or write it anew, or unpack it and name the folder.",
        ) from error
