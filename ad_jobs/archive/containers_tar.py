"""TAR: its entries as a stream of headers (POSIX.1-2017 pax, "ustar Interchange Format", and GNU's long names).

Where a header is damaged nothing behind it can be found: the whole TAR is refused, as it is without its end mark.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from ad_jobs.archive.containers_names import Address, Entry, NotAContainer, escaped
from ad_jobs.archive.containers_reading import Tape, cut_off
from ad_jobs.errors import ErrorCode, ImageError
from cluster.storage import LeftOut

BLOCK = tarfile.BLOCKSIZE
# Of a long name or of pax records: what describes a member is no content.
MAX_DESCRIPTION_BYTES = 1 << 20
# How much behind the end mark is looked at: a TAR is padded to a multiple of ten blocks, or of some more.
MAX_TAIL_BYTES = 1 << 20

_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE)
# Behind these lies no content, whatever their size says.
_BARE = (*_LINKS, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_DESCRIPTIONS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_SKIPPED_DESCRIPTIONS = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=")


class _Described(NamedTuple):
    """What extended headers say of the entry that follows them."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


def walk(tape: Tape) -> Iterator[Entry]:
    """The entries in their order.

    Raises:
        NotAContainer: this is no TAR.
        ImageError: it is one that is truncated or damaged.
    """
    described = _Described()
    while True:
        block = tape.read(BLOCK)
        first = tape.position <= BLOCK
        if len(block) < BLOCK:
            raise NotAContainer if first else cut_off()
        if not any(block):
            # POSIX ends it with two such blocks, and pads with more; one alone may be a header that was zeroed.
            if any(tape.read(MAX_TAIL_BYTES)):
                raise damaged()
            return
        header = _header(block, first)
        if header.type in _DESCRIPTIONS:
            described = _read_description(tape, header, described)
        elif header.type in _SKIPPED_DESCRIPTIONS:
            tape.skip(_padded(header.size))
        else:
            yield _entry(tape, block, header, described)
            described = _Described()


def _header(block: bytes, first: bool) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if first:
            raise NotAContainer from error
        raise damaged() from error
    if header.size < 0:
        raise damaged()
    return header


def _entry(tape: Tape, block: bytes, header: tarfile.TarInfo, described: _Described) -> Entry:
    name = described.name or header.name.encode("utf-8", "surrogateescape")
    size = header.size if described.size is None else described.size
    sparse = described.sparse or header.type == tarfile.GNUTYPE_SPARSE
    if header.type == tarfile.GNUTYPE_SPARSE:
        # GNU's format: a flag says that another block of the map follows.
        more = block[482]
        while more:
            more = (tape.read(BLOCK) or bytes(BLOCK)).ljust(BLOCK, b"\0")[504]
    begin = tape.position
    if header.type not in _BARE:
        tape.skip(_padded(size))
    if header.type == tarfile.DIRTYPE:
        return Entry(escaped(name), None)
    if header.type in _LINKS:
        return Entry(escaped(name), None, LeftOut.LINK)
    if header.type not in _FILES:
        return Entry(escaped(name), None, LeftOut.SPECIAL)
    # Its pieces lie elsewhere than its content has them.
    return Entry(escaped(name), Address(begin, 0 if sparse else size, max(1, size) if sparse else size, 0))


def _read_description(tape: Tape, header: tarfile.TarInfo, described: _Described) -> _Described:
    if header.size > MAX_DESCRIPTION_BYTES:
        raise ImageError(
            ErrorCode.TOO_MANY_BYTES, f"a header has {header.size} bytes, more than {MAX_DESCRIPTION_BYTES}"
        )
    data = tape.read(_padded(header.size))[: header.size]
    if len(data) < header.size:
        raise cut_off()
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return described._replace(name=data.partition(b"\0")[0])
    records = _records(data)
    size = records.get(b"size", b"0")
    # No size has more digits, and Python converts no number of thousands.
    if not size.isdigit() or len(size) > 20:
        raise damaged()
    return _Described(
        records.get(b"GNU.sparse.name") or records.get(b"path") or described.name,
        int(size) if b"size" in records else described.size,
        described.sparse or any(key.startswith(b"GNU.sparse.") for key in records),
    )


def _records(data: bytes) -> dict[bytes, bytes]:
    """pax records by their keywords: each is its length, a space, KEYWORD=VALUE and a line feed."""
    found: dict[bytes, bytes] = {}
    position = 0
    while position < len(data) and data[position]:
        match = _RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or end <= match.end() or data[end - 1 : end] != b"\n":
            raise damaged()
        found[match[2]] = data[match.end() : end - 1]
        position = end
    return found


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def damaged() -> ImageError:
    return ImageError(ErrorCode.CORRUPT, "a header of its entries is damaged")
