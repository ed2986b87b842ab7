"""The members of a heatmap shard, looked at while its bytes go by: their names and places, without a copy of them.

What is known of a tar is what `heatmaps.pack` writes: POSIX ustar (IEEE Std 1003.1, pax, "ustar Interchange Format"),
plain files alone, names of at most 100 bytes.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

MARKS = 1 << 64
_BLOCK = 512
# Fields of a header: where they begin and end.
_NAME, _SIZE, _CHECKSUM, _MAGIC = slice(0, 100), slice(124, 135), slice(148, 156), slice(257, 263)
_TYPE, _PREFIX = 156, 345
_EIGHTS = 8 ** np.arange(6)[::-1]
_PLAIN_FILE = b"0"


def member_mark(member: str, offset: int, length: int) -> int:
    """A number for a member and its place in its shard; sums of them, modulo MARKS, tell other members and places."""
    return int.from_bytes(hashlib.blake2b(f"{member} {offset} {length}".encode(), digest_size=8).digest())


class Members:
    """Counts the members of a shard, and adds up their marks, as `take` is given its bytes.

    Attributes:
        count: how many.
        marks: the sum of their `member_mark`s, modulo MARKS.
    """

    def __init__(self) -> None:
        self.count = 0
        self.marks = 0
        # What was taken but for `_rest`, which is part of a block; and where the next header begins.
        self._taken = 0
        self._rest = b""
        self._next = 0
        self._ended = False

    @property
    def whole(self) -> bool:
        """True once the end-of-archive mark has come, with nothing missing before it."""
        return self._ended

    def take(self, data: bytes | memoryview) -> None:
        """The next bytes of the shard; what follows its end is nobody's member.

        Raises:
            ValueError: a header that is damaged, or none that `pack` writes.
        """
        if self._ended:
            return
        # Nothing is copied while pieces are of whole blocks.
        data = self._rest + bytes(data) if self._rest else memoryview(data)
        whole = len(data) // _BLOCK * _BLOCK
        self._rest = bytes(data[whole:])
        places, sizes = [], []
        while self._next < self._taken + whole:
            place = self._next - self._taken
            if data[place] == 0:
                self._ended = _is_end(data[place : place + _BLOCK])
                break
            size = _size(bytes(data[place : place + _BLOCK][_SIZE]))
            places.append(place)
            sizes.append(size)
            self._next += _BLOCK + size + -size % _BLOCK
        if places:
            blocks = np.frombuffer(data[:whole], np.uint8).reshape(-1, _BLOCK)
            self._add(blocks[np.array(places) // _BLOCK], places, sizes)
        self._taken += whole

    def _add(self, headers: NDArray[np.uint8], places: list[int], sizes: list[int]) -> None:
        """Members by their headers, uint8 [n, 512]."""
        _check(headers)
        names = headers[:, _NAME].copy().view("S100").ravel().tolist()
        for name, place, size in zip(names, places, sizes, strict=True):
            self.marks += member_mark(name.decode("ascii"), self._taken + place + _BLOCK, size)
        self.marks %= MARKS
        self.count += len(names)


def _is_end(block: bytes | memoryview) -> bool:
    """True for an empty block; raises ValueError for a header without a name."""
    if bytes(block) != bytes(_BLOCK):
        raise ValueError("a header without a name")
    return True


def _size(digits: bytes) -> int:
    """What a header says of its file's bytes; raises ValueError for other than octal digits."""
    if not digits.isdigit():
        raise ValueError("a size that is no octal number")
    return int(digits, 8)


def _check(headers: NDArray[np.uint8]) -> None:
    """Raise ValueError where one of the headers, uint8 [n, 512], is not of a plain file, or its checksum is wrong."""
    if (headers[:, _MAGIC] != np.frombuffer(b"ustar\0", np.uint8)).any() or (headers[:, _PREFIX] != 0).any():
        raise ValueError("no ustar header of a short name")
    if (headers[:, _TYPE] != ord(_PLAIN_FILE)).any():
        raise ValueError("no plain file")
    # The sum of all bytes, those of the checksum itself taken as spaces; written as six octal digits, NUL, space.
    written = headers[:, _CHECKSUM]
    digits = written[:, :6].astype(np.int64) - ord("0")
    sums = headers.sum(axis=1, dtype=np.int64) - written.sum(axis=1, dtype=np.int64) + 8 * ord(" ")
    if ((digits < 0) | (digits > 7)).any() or (digits @ _EIGHTS != sums).any():
        raise ValueError("a header whose checksum is wrong")
