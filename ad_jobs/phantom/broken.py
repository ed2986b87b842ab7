"""Objects that cannot be scored, each with the code a scan has to give it. They name a patient, too."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from pydicom.uid import ExplicitVRLittleEndian

from ad_jobs.errors import ErrorCode
from ad_jobs.phantom.objects import Study, image_bytes, malformed_bytes, undecodable_bytes
from ad_jobs.phantom.scanners import Acquired

KINDS = ("truncated", "empty", "text", "bomb", "undecodable", "malformed")

# A picture of 900 million pixels in a few hundred bytes.
_BOMB_PX = 30_000


class Broken(NamedTuple):
    """A bad object: its file name's ending, its bytes, and what a scan should say of it."""

    suffix: str
    data: bytes
    expected: ErrorCode


def broken(kind: str, study: Study, number: int, picture: Acquired) -> Broken:
    """A bad object of one of KINDS that would otherwise have been a slice of `study`."""
    name = study.person.attributes["PatientName"]
    if kind == "truncated":
        whole = image_bytes(study, number, [picture], str(ExplicitVRLittleEndian))
        return Broken(".dcm", whole[: len(whole) * 6 // 10], ErrorCode.TRUNCATED)
    if kind == "empty":
        return Broken(".dcm", b"", ErrorCode.EMPTY)
    if kind == "text":
        return Broken(".dcm", f"Worklist entry\nPatient: {name}\n".encode(), ErrorCode.UNKNOWN_FORMAT)
    if kind == "bomb":
        return Broken(".png", _png_bomb(name), ErrorCode.TOO_MANY_PIXELS)
    if kind == "undecodable":
        return Broken(".dcm", undecodable_bytes(study, number, picture), ErrorCode.CORRUPT)
    if kind == "malformed":
        return Broken(".dcm", malformed_bytes(study, number, picture), ErrorCode.UNSUPPORTED_IMAGE)
    raise ValueError(f"A broken object must be one of {', '.join(KINDS)}. Got: {kind!r}.")


def _png_bomb(name: str) -> bytes:
    header = struct.pack(">IIBBBBB", _BOMB_PX, _BOMB_PX, 8, 0, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"tEXt", b"Author\0" + name.encode("latin-1")),
        (b"IDAT", zlib.compress(bytes(65536), 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
