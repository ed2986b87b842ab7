"""How a member of a container is named, and where it lies, which its etag says.

A container is an object whose name ends in .zip, .tar, .tar.gz, .tgz or .gz, in any case; a member's URI is the
container's, `!/`, and its name there: `s3://bucket/study.zip!/series/IM1`, `/archive/IM1.dcm.gz!/IM1.dcm`.
In the name `%`, NUL, bytes that are no UTF-8 and the dots of a folder `..` are percent-escapes, so that a name can
neither lead anywhere nor be taken for another.

A file or key whose own name holds `.zip!/` has no escape: its etag is the store's, a member's says where it lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from cluster.storage import LeftOut, parent

SEPARATOR = "!/"


class Kind(StrEnum):
    """What a container is."""

    ZIP = "ZIP"
    TAR = "TAR"
    # Compressed as a whole: nothing in it can be reached but through all that lies before.
    TAR_GZIP = "TAR in gzip"
    # One compressed object.
    GZIP = "gzip"


# The longer first.
_SUFFIXES = {".tar.gz": Kind.TAR_GZIP, ".tgz": Kind.TAR_GZIP, ".tar": Kind.TAR, ".zip": Kind.ZIP, ".gz": Kind.GZIP}


class Address(NamedTuple):
    """Where a member lies in its container; a sparse one has a size and stores none of it as such."""

    # Of a ZIP's local header, of a TAR's content; of the unpacked TAR, where that is compressed.
    offset: int
    # Bytes in the container, compressed where it is.
    stored: int
    # Bytes of its own; 0 of gzip, which does not say.
    size: int
    # A ZIP's CRC-32; 0 elsewhere.
    crc: int


class Entry(NamedTuple):
    """One entry of a container as it comes: a member with its address, or why it is none; a folder has neither."""

    name: str
    address: Address | None
    left_out: LeftOut | None = None


class Known(NamedTuple):
    """What a member's etag says: its container's etag when it was listed, and its address there."""

    container_etag: str | None
    address: Address


class NotAContainer(Exception):
    """An object has a container's name, and its content is none."""


def kind_of(uri: str) -> Kind | None:
    """The kind of container that a name announces.

    >>> kind_of("/a/IM1.dcm.GZ"), kind_of("/a/b.tar.gz"), kind_of("/a/.zip")
    (<Kind.GZIP: 'gzip'>, <Kind.TAR_GZIP: 'TAR in gzip'>, None)
    """
    name = uri.rpartition("/")[2].lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix) and name != suffix), None)


def member_uri(container: str, name: str) -> str:
    """The URI of a member by its escaped name."""
    return container + SEPARATOR + name


def splits(uri: str) -> Iterator[tuple[str, str]]:
    """Every container and member that a URI may name; more than one where folders are named like containers.

    >>> list(splits("/a/b.zip!/c/d.png")), list(splits("/a/b!/c.png"))
    ([('/a/b.zip', 'c/d.png')], [])
    """
    at = uri.find(SEPARATOR)
    while at >= 0:
        if kind_of(uri[:at]) is not None:
            yield uri[:at], uri[at + len(SEPARATOR) :]
        at = uri.find(SEPARATOR, at + 1)


def held_by(uri: str) -> str:
    """The object of a store that holds what a URI names: its container, or itself."""
    return next((container for container, _ in splits(uri)), uri)


def group_of(uri: str) -> str:
    """What a picture without a study is held out with: its container, where it lies in no folder there; or itself.

    >>> group_of("/a/b.zip!/c.png"), group_of("/a/b.zip!/c/d.png"), group_of("/a/c.png.gz!/c.png")
    ('/a/b.zip', '/a/b.zip!/c/d.png', '/a/c.png.gz!/c.png')
    """
    for container, name in splits(uri):
        if kind_of(container) is not Kind.GZIP and "/" not in name:
            return container
    return uri


def folder_of(uri: str) -> str:
    """The folder that holds an object; of a member that lies in no folder of its container, the container.

    >>> folder_of("/a/b.zip!/c.png"), folder_of("/a/b.zip!/c/d.png"), folder_of("/a/c.png.gz!/c.png"), folder_of("/a/b")
    ('/a/b.zip', '/a/b.zip!/c', '/a', '/a')
    """
    for container, name in splits(uri):
        if "/" not in name:
            return parent(container) if kind_of(container) is Kind.GZIP else container
    return parent(uri)


def gzip_member(container: str) -> str:
    """The name of the one object in a .gz: the file's without that ending, whatever the header in it says."""
    return container.rpartition("/")[2][: -len(".gz")]


def escaped(name: bytes) -> str:
    """A member's name as it stands in its URI: UTF-8, with percent-escapes for what must not stand there.

    >>> escaped(b"../50%/\\xff"), escaped("./é/..b".encode())
    ('%2E%2E/50%25/%FF', 'é/..b')
    """
    while name.startswith(b"./"):
        # `tar -c .` writes it; a TAR may hold `a` and later `./a`, which replaces it.
        name = name[2:].lstrip(b"/")
    text = _HIDDEN.sub(_escape, name.decode("utf-8", "surrogateescape"))
    return "/".join("%2E%2E" if part == ".." else part for part in text.split("/"))


# What Python writes for a byte that is no UTF-8 is U+DC80 to U+DCFF.
_HIDDEN = re.compile("[%\0\udc80-\udcff]")


def _escape(found: re.Match[str]) -> str:
    return f"%{ord(found[0]) & 0xFF:02X}"


def member_etag(container_etag: str | None, address: Address) -> str:
    """The etag of a member: it changes with its container, and says where the member lies.

    >>> member_etag("6e-2a", Address(64, 10, 16, 0xCAFE))
    '6e-2a!40-a-10-cafe'
    """
    return f"{container_etag or ''}!{address.offset:x}-{address.stored:x}-{address.size:x}-{address.crc:x}"


def known(etag: str | None) -> Known | None:
    """What an etag says of a member; None for that of a whole object of a store."""
    found = None if etag is None else _ETAG.fullmatch(etag)
    if found is None:
        return None
    return Known(found[1] or None, Address(*(int(number, 16) for number in found.groups()[1:])))


_ETAG = re.compile(r"(.*)!([0-9a-f]+)-([0-9a-f]+)-([0-9a-f]+)-([0-9a-f]+)", re.DOTALL)
