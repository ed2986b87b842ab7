"""An object's bytes by its URI, whether it is an object of a store or a member of a container there.

Whoever reads an image asks here. What a listing said of a member, its etag, saves the search for it: then a member of a
ZIP or TAR is one ranged read.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from ad_jobs.archive import containers_gzip, containers_zip
from ad_jobs.archive.containers import entries
from ad_jobs.archive.containers_gzip import Kept, UnpackedTar
from ad_jobs.archive.containers_names import (
    Address,
    Kind,
    Known,
    NotAContainer,
    gzip_member,
    held_by,
    kind_of,
    known,
    member_etag,
    member_uri,
    splits,
)
from ad_jobs.archive.containers_reading import Replaced
from ad_jobs.errors import ErrorCode, ImageError, UsageError
from cluster import storage
from cluster.counting import counted

__all__ = ["Packed", "as_listed", "beginning", "fetch", "fetch_packed", "held_by", "stat"]


class Packed(NamedTuple):
    """An object as it was fetched: its content, or, of a .gz, what that is to be unpacked from; and its etag."""

    data: bytes
    etag: str | None
    # The name of what is in it, if it is gzip.
    gzip: str | None = None

    def content(self, max_bytes: int) -> bytes:
        """The object's own bytes.

        Raises:
            ImageError: the gzip data is damaged, unpacks to more than `max_bytes`, or to another container.
        """
        if self.gzip is None:
            return self.data
        data = containers_gzip.unpacked(self.data, max_bytes)
        _refuse_nested(self.gzip, data)
        return data


class _Directory:
    """What a container holds, by name."""

    def __init__(self, info: storage.ObjectInfo, within: str | None) -> None:
        self.info = info
        self.members: dict[str, Address] = {}
        # Why it could not be read: found out once, and told of every member.
        self.refused: ImageError | None = None
        try:
            for entry in entries(info, within):
                if entry.address is not None:
                    self.members[entry.name] = entry.address
        except (NotAContainer, ImageError) as error:
            reason = error.detail if isinstance(error, ImageError) else "it is none, whatever its name says"
            self.refused = ImageError(ErrorCode.UNREADABLE_CONTAINER, f"its container: {reason}")

    def find(self, name: str) -> Address:
        """Where a member lies.

        Raises:
            ImageError: the container cannot be read.
            NotFound: it has no such member.
        """
        if self.refused is not None:
            raise self.refused
        if name not in self.members:
            raise storage.NotFound(self.info.uri, "no such member in it")
        return self.members[name]


_DIRECTORIES = Kept(_Directory)
_UNPACKED = Kept(UnpackedTar)


def fetch(uri: str, max_bytes: int, within: str | None = None, etag: str | None = None) -> storage.Fetched:
    """An object's own bytes and its etag.

    Args:
        uri: of an object of a store, or `CONTAINER!/MEMBER`.
        max_bytes: compared with its size before any of it is read; of a .gz with what comes of it, too.
        within: the folder that no link may lead out of.
        etag: what a listing said of it; without it a member is looked for in its container's directory.

    Raises:
        ImageError: a container that cannot be read, or a member that is encrypted, damaged or itself a container.
        StorageError: as `storage.fetch`.
    """
    packed = fetch_packed(uri, max_bytes, within, etag)
    return storage.Fetched(packed.content(max_bytes), packed.etag)


def fetch_packed(uri: str, max_bytes: int, within: str | None = None, etag: str | None = None) -> Packed:
    """As `fetch`, but a .gz is not yet unpacked: many may wait for their turn, and one be unpacked at a time."""
    listed = known(etag)
    refused: storage.StorageError | None = None
    if listed is not None or etag is None:
        for container, name in splits(uri):
            try:
                return _member(container, name, listed, max_bytes, within)
            except storage.KeysRefused:
                raise
            except (storage.NotFound, storage.AccessDenied) as error:
                # A folder may be named like a container, and what lies in it like a member.
                refused = refused or error
    if listed is not None and refused is not None:
        raise refused
    try:
        return _plain(uri, max_bytes, within)
    except storage.NotFound as error:
        raise refused or error from error


def as_listed(uri: str) -> str:
    """The URI that a listing has for a file of one object: a .gz is a container of one.

    Raises:
        UsageError: it is a container of many.
    """
    # Of what lies in a container none is opened.
    kind = kind_of(uri) if held_by(uri) == uri else None
    if kind is Kind.GZIP:
        return member_uri(uri, gzip_member(uri))
    if kind is not None:
        # One that cannot be opened, or is not there, is no image either: its row says why.
        with suppress(NotAContainer, ImageError, storage.StorageError):
            found = entries(storage.stat(uri), storage.parent(uri))
            member = next((entry for entry in found if entry.address is not None), None)
            example = "NAME" if member is None else member.name
            raise UsageError(
                "An image is one object: of a container, a member.",
                uri,
                f"Name it as {member_uri(uri, example)}, or scan the container.",
            )
    return uri


def _plain(uri: str, max_bytes: int, within: str | None) -> Packed:
    """An object of a store; one that is a container is here because it could not be opened when it was listed."""
    if kind_of(uri) not in (None, Kind.GZIP) and (reason := _why_unreadable(uri, within)) is not None:
        raise ImageError(ErrorCode.UNREADABLE_CONTAINER, reason)
    data, etag = storage.fetch(uri, max_bytes, within)
    return Packed(data, etag)


def _why_unreadable(uri: str, within: str | None) -> str | None:
    """Why a container cannot be opened; None if it can, as where an older manifest lists it, or if it is none."""
    try:
        for _ in entries(storage.stat(uri), within):
            pass
    except NotAContainer:
        return None
    except ImageError as error:
        return error.detail
    return None


def _member(container: str, name: str, listed: Known | None, max_bytes: int, within: str | None) -> Packed:
    if kind_of(container) is Kind.GZIP:
        if name != gzip_member(container):
            raise storage.NotFound(container, "no such member in it")
        data, etag = storage.fetch(container, max_bytes, within)
        return Packed(data, member_etag(etag, Address(0, len(data), 0, 0)), name)
    if listed is not None:
        raw, etag = _stored(container, listed.address, listed.container_etag, max_bytes, within)
        if etag == listed.container_etag:
            return _unwrapped(container, name, raw, listed)
    directory = _DIRECTORIES.get(container, within)
    found = Known(directory.info.etag, directory.find(name))
    raw, etag = _stored(container, found.address, found.container_etag, max_bytes, within)
    _refuse_other(container, etag, found.container_etag)
    return _unwrapped(container, name, raw, found)


def _stored(
    container: str, address: Address, wanted_etag: str | None, max_bytes: int, within: str | None
) -> storage.Fetched:
    """A member as its container has it, and the container's etag; not yet looked at."""
    if (size := max(address.stored, address.size)) > max_bytes:
        raise storage.TooLarge(container, f"{counted(size, 'byte')}, more than the limit of {max_bytes}")
    kind = kind_of(container)
    if kind is Kind.TAR_GZIP:
        unpacked = _UNPACKED.get(container, within)
        return storage.Fetched(unpacked.at(address.offset, address.size), unpacked.info.etag)
    if kind is Kind.TAR:
        # At least one byte, which brings the etag along.
        data, etag = storage.fetch_piece(container, address.offset, max(1, address.stored), within)
        return storage.Fetched(data[: address.stored], etag)
    offset, length = containers_zip.span(address)
    data, etag = storage.fetch_piece(container, offset, length, within)
    if etag == wanted_etag and (more := containers_zip.missing(data, address)):
        rest = storage.fetch_piece(container, offset + len(data), more, within)
        data = data + rest.data if rest.etag == etag else data
    return storage.Fetched(data, etag)


def _unwrapped(container: str, name: str, raw: bytes, found: Known) -> Packed:
    """The content of a member, from what its container has of it."""
    address = found.address
    if kind_of(container) is Kind.ZIP:
        data = containers_zip.content(raw, address)
    else:
        _refuse_sparse(address)
        if len(raw) < address.size:
            raise ImageError(ErrorCode.TRUNCATED, "its container ends within it")
        data = raw
    _refuse_nested(name, data)
    return Packed(data, member_etag(found.container_etag, address))


def _refuse_other(container: str, etag: str | None, wanted: str | None) -> None:
    if etag != wanted:
        raise Replaced(container, "it was replaced while it was read")


def _refuse_sparse(address: Address) -> None:
    if address.stored != address.size:
        raise ImageError(ErrorCode.UNSUPPORTED_MEMBER, "it is sparse")


def _refuse_nested(name: str, data: bytes) -> None:
    """Raise ImageError for a container in a container, by its name and its content: it is not opened."""
    kind = kind_of(name)
    marks = {
        Kind.ZIP: data[:4] in (b"PK\3\4", b"PK\5\6"),
        Kind.TAR: data[257:262] == b"ustar",
        Kind.TAR_GZIP: data.startswith(containers_gzip.MAGIC),
        Kind.GZIP: data.startswith(containers_gzip.MAGIC),
    }
    if kind is not None and marks[kind]:
        raise ImageError(
            ErrorCode.NESTED_CONTAINER, f"a {kind} in a container, which is not opened: unpack one of them"
        )


def beginning(uri: str, length: int, etag: str | None = None) -> bytes:
    """The first `length` bytes of an object, or as many as there are, of a member as its etag says where it lies.

    Raises:
        ImageError, StorageError: as `fetch`.
    """
    listed = known(etag)
    if listed is None:
        return storage.fetch_range(uri, 0, length)
    refused: storage.NotFound | None = None
    for container, name in splits(uri):
        try:
            return _beginning(container, name, length, listed)
        except storage.NotFound as error:
            refused = refused or error
    raise refused or storage.NotFound(uri, "it names no member of a container")


def _beginning(container: str, name: str, length: int, listed: Known) -> bytes:
    kind, address = kind_of(container), listed.address
    if kind is Kind.TAR_GZIP:
        _refuse_sparse(address)
        unpacked = _UNPACKED.get(container, None)
        _refuse_other(container, unpacked.info.etag, listed.container_etag)
        return unpacked.at(address.offset, min(length, address.size))
    # Deflated data is seldom longer than what it was made of, and never by much.
    most = min(length + length // 512 + 1024, max(1, address.stored))
    start, around = containers_zip.span(address._replace(stored=most)) if kind is Kind.ZIP else (address.offset, most)
    raw, etag = storage.fetch_piece(container, start, around)
    _refuse_other(container, etag, listed.container_etag)
    if kind is Kind.ZIP:
        return containers_zip.beginning(raw, length)
    if kind is Kind.GZIP:
        if name != gzip_member(container):
            raise storage.NotFound(container, "no such member in it")
        return containers_gzip.beginning(raw, length)
    _refuse_sparse(address)
    return raw[: min(length, address.size)]


def stat(uri: str) -> storage.ObjectInfo:
    """What is known of one object without its content; for a member its container's directory is read.

    Raises:
        ImageError, StorageError: as `fetch`.
    """
    for container, name in splits(uri):
        try:
            return _found(container, name)._replace(uri=uri)
        except storage.KeysRefused:
            raise
        except (storage.NotFound, storage.AccessDenied):
            continue
    return storage.stat(uri)


def _found(container: str, name: str) -> storage.ObjectInfo:
    if kind_of(container) is Kind.GZIP:
        if name != gzip_member(container):
            raise storage.NotFound(container, "no such member in it")
        info = storage.stat(container)
        return info._replace(etag=member_etag(info.etag, Address(0, info.bytes, 0, 0)))
    directory = _DIRECTORIES.get(container, None)
    info, address = directory.info, directory.find(name)
    return info._replace(bytes=address.size, etag=member_etag(info.etag, address))
