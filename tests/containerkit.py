"""Containers for tests, whole and hostile, built in code."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

Files = Mapping[str, bytes] | Iterable[tuple[str, bytes]]


class Unseekable(io.RawIOBase):
    """A pipe, as it were: a ZIP written to it has its sizes behind the data, not before."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


def pairs(files: Files) -> Iterable[tuple[str, bytes]]:
    return files.items() if isinstance(files, Mapping) else files


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    """A ZIP of the files, in this order; a name may come twice."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.comment = comment
        for name, data in pairs(files):
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def streamed_zip(files: Files) -> bytes:
    """The same with data descriptors (APPNOTE 4.3.9)."""
    file = Unseekable()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pairs(files):
            archive.writestr(name, data)
    return bytes(file.data)


def encrypted(archive: bytes) -> bytes:
    """The ZIP with bit 0 of the flags of every member (APPNOTE 4.4.4)."""
    data = bytearray(archive)
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        found = data.find(mark)
        while found >= 0:
            data[found + at] |= 1
            found = data.find(mark, found + 4)
    return bytes(data)


def tarred(files: Files, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A TAR of the files, in this order; a name may come twice."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, data in pairs(files):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def special_tar(types: Mapping[str, bytes]) -> bytes:
    """A TAR of entries without content, by name and type."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind in types.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "somewhere"
            archive.addfile(info)
    return file.getvalue()


def sparse_tar() -> bytes:
    """A TAR with one sparse file in pax form 0.1, before a plain one."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("sparse.png")
        info.size = 4
        info.pax_headers = {"GNU.sparse.map": "0,4", "GNU.sparse.numblocks": "1", "GNU.sparse.size": "4096"}
        archive.addfile(info, io.BytesIO(b"data"))
        plain = tarfile.TarInfo("plain.png")
        plain.size = 5
        archive.addfile(plain, io.BytesIO(b"plain"))
    return file.getvalue()


def gzipped(data: bytes) -> bytes:
    """gzip data, the same every time."""
    return gzip.compress(data, mtime=0)
