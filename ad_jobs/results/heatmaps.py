"""Heatmaps on disk: 16-bit grey PNGs on the run's global scale, packed into tar shards and read one by one.

A reference `heatmaps/part-….tar#offset,length` names the bytes of one PNG inside a shard, so that any S3
client, curl or pandas user gets a heatmap with a single ranged read, and any picture viewer opens it.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ad_jobs.errors import JobError, UsageError
from ad_jobs.images.geometry import Geometry
from ad_jobs.results.parts import HEATMAPS_FOLDER, part_name
from ad_jobs.specs import KeepPolicy
from cluster import storage
from cluster.counting import counted

# The PNG value of 1.0.
FULL_SCALE = 65535
# Of the images that are not flagged, kept so that normal heatmaps can be looked at too.
SAMPLE_SHARE = 0.01
# Keywords of tEXt chunks.
GEOMETRY_KEY, ANCHOR_KEY = "geometry", "anchor"
# Of a heatmap that does not say: earlier versions had the hottest thousandth of normal pixels at a third of the scale.
EARLIER_ANCHOR = 1 / 3

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# PNG specification, 9.2: each byte minus the one above it.
_FILTER_UP = 2
# Measured on blurred maps: levels 1-9 differ by 1 % in size, 3 is among the fastest.
_DEFLATE_LEVEL = 3
_BLOCK = tarfile.BLOCKSIZE


def on_scale(heatmap: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """A raw heatmap on the global scale of a calibration, [0, 1]; what lies beyond its ends is clipped."""
    scaled = (heatmap.astype(np.float64) - low) / (high - low)
    return np.clip(scaled, 0.0, 1.0).astype(np.float32)


class Heatmap(NamedTuple):
    """One heatmap on the run's global scale: float32 [H, W] in [0, 1] at the detector's input size.

    One that was stitched of tiles has the size of `images.tiling.geometry_to_store`.

    The scale is linear, and long enough that next to nothing is clipped; `anchor`, in (0, 1), is where on it the
    calibration's anchor lies (scoring.calibration): what is drawn half hot.
    """

    values: NDArray[np.float32]
    geometry: Geometry
    anchor: float = EARLIER_ANCHOR

    def on_source(self) -> NDArray[np.float32]:
        """The heatmap laid over the original image: float32 [rows, columns] in [0, 1]."""
        return self.geometry.heatmap_to_source(self.values).astype(np.float32)

    def drawn(self) -> Heatmap:
        """As every picture of it is drawn: 0.5 is the anchor, 1 twice as far up, and what lies beyond is 1."""
        return Heatmap(np.minimum(self.values * np.float32(0.5 / self.anchor), np.float32(1)), self.geometry, 0.5)


def encode_png(unit: NDArray[np.floating], geometry: Geometry, anchor: float = EARLIER_ANCHOR) -> bytes:
    """A heatmap [H, W] in [0, 1] as 16-bit grey PNG, geometry and anchor in tEXt chunks; same input, same bytes.

    Raises:
        ValueError: not two-dimensional, not finite, or outside [0, 1].
    """
    if unit.ndim != 2 or not unit.size:
        raise ValueError(f"A heatmap must have shape [H, W]. Got: {list(unit.shape)}. Encode one frame at a time.")
    # NaN compares false with everything, so this also refuses it.
    if not (unit.min() >= 0.0 and unit.max() <= 1.0):
        raise ValueError(
            f"A heatmap must be finite and within [0, 1]. Got: [{unit.min():g}, {unit.max():g}]. "
            "Put it on the calibration's global scale first."
        )
    height_px, width_px = unit.shape
    values = np.rint(unit.astype(np.float64) * FULL_SCALE).astype(">u2")
    lines = values.view(np.uint8).reshape(height_px, 2 * width_px)
    filtered = np.empty((height_px, 1 + 2 * width_px), np.uint8)
    filtered[:, 0] = _FILTER_UP
    filtered[0, 1:] = lines[0]
    # Modulo 256, as the filter asks.
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    # 16 bits, greyscale, not interlaced.
    header = struct.pack(">IIBBBBB", width_px, height_px, 16, 0, 0, 0, 0)
    placed = json.dumps(geometry._asdict(), sort_keys=True, separators=(",", ":"))
    return b"".join(
        [
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _text(GEOMETRY_KEY, placed),
            _text(ANCHOR_KEY, repr(float(anchor))),
            _chunk(b"IDAT", zlib.compress(filtered.tobytes(), _DEFLATE_LEVEL)),
            _chunk(b"IEND", b""),
        ]
    )


def decode_png(data: bytes) -> Heatmap:
    """The heatmap of what `encode_png` wrote.

    Raises:
        JobError: the bytes are damaged, or are a picture of another kind.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            values = np.asarray(image)
            text = dict(image.info)
        if values.dtype != np.uint16 or values.ndim != 2:
            raise ValueError("not a 16-bit greyscale picture")
        geometry = Geometry(**json.loads(text[GEOMETRY_KEY]))
        anchor = float(text.get(ANCHOR_KEY, EARLIER_ANCHOR))
        if not 0 < anchor < 1:
            raise ValueError("an anchor beyond the scale")
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, zlib.error, struct.error) as error:
        raise JobError(
            f"A heatmap cannot be read: {type(error).__name__} in {counted(len(data), 'byte')}.",
            "Its shard is damaged or has been rewritten: compare it with the sha256 in run.json.",
        ) from error
    return Heatmap(values.astype(np.float32) / np.float32(FULL_SCALE), geometry, anchor)


def _text(keyword: str, text: str) -> bytes:
    return _chunk(b"tEXt", f"{keyword}\0{text}".encode("latin-1"))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def member_name(object_id: int, frame: int, model_id: str | None = None) -> str:
    """A heatmap's name inside its shard; `model_id` only where several models are scanned with at once."""
    suffix = f"-{model_id}" if model_id is not None else ""
    return f"{object_id:012d}-{frame:05d}{suffix}.png"


def keep(policy: KeepPolicy, flagged: bool, object_id: int, frame: int) -> bool:
    """Whether a frame's heatmap is kept; under `flagged` the flagged ones and a fixed 1 % sample of the rest.

    The sample depends on object and frame alone, so that a resumed run keeps the same ones.
    """
    if policy == "flagged":
        return flagged or _uniform(object_id, frame) < SAMPLE_SHARE
    return policy == "all"


def _uniform(object_id: int, frame: int) -> float:
    """A number in [0, 1) that looks random and is the same wherever it is asked for."""
    digest = hashlib.sha256(f"{object_id}/{frame}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


class Shard(NamedTuple):
    """A packed tar, its name relative to the run, and where each member lies in it (offset, length)."""

    name: str
    data: bytes
    ranges: dict[str, tuple[int, int]]

    def reference(self, member: str) -> str:
        """What the score table's `heatmap` column says of this member."""
        offset, length = self.ranges[member]
        return f"{self.name}#{offset},{length}"


def shard_name(members: Iterable[str], chapter: int = 0) -> str:
    """A shard's name, from what it holds (objects, frames, models): a retried task overwrites its own."""
    return f"{HEATMAPS_FOLDER}/{part_name(chapter, members)}.tar"


def pack(members: Iterable[tuple[str, bytes]], chapter: int = 0) -> Shard:
    """The shard of a chapter that holds `members` (name, PNG bytes), sorted by name.

    It is a ustar file without times or owners.

    Raises:
        ValueError: no member, or two of one name.
    """
    ordered = sorted(members)
    names = [name for name, _ in ordered]
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"A shard must hold one or more members of different names. Got: {counted(len(names), 'member')}, "
            f"{len(set(names))} names. Skip an empty shard; name members by object, frame and model."
        )
    blocks: list[bytes] = []
    ranges: dict[str, tuple[int, int]] = {}
    offset = 0
    for name, data in ordered:
        # Its defaults are mtime 0, uid 0, gid 0, no owner's name.
        header = tarfile.TarInfo(name)
        header.size = len(data)
        block = header.tobuf(tarfile.USTAR_FORMAT)
        ranges[name] = (offset + len(block), len(data))
        blocks += [block, data, b"\0" * (-len(data) % _BLOCK)]
        offset += sum(map(len, blocks[-3:]))
    # End of archive: two empty blocks.
    blocks.append(b"\0" * (2 * _BLOCK))
    return Shard(shard_name(names, chapter), b"".join(blocks), ranges)


class Reference(NamedTuple):
    """Where one heatmap's PNG lies: the shard's name relative to the run, and the range of bytes in it."""

    shard: str
    offset: int
    length: int


def parse_reference(text: str) -> Reference:
    """The parts of a `heatmap` reference.

    Raises:
        UsageError: not of the form `heatmaps/part-….tar#offset,length`.
    """
    shard, hash_mark, span = text.rpartition("#")
    offset, comma, length = span.partition(",")
    numbers = offset.isascii() and offset.isdigit() and length.isascii() and length.isdigit()
    inside = shard.startswith("heatmaps/") and ".." not in shard.split("/")
    if not (hash_mark and comma and numbers and inside and int(length) > 0):
        raise UsageError(
            "A heatmap reference has the form heatmaps/part-….tar#offset,length.",
            repr(text),
            "Take it from the column heatmap of the score table; rows whose heatmap is null kept none.",
        )
    return Reference(shard, int(offset), int(length))


def write_shard(members: Iterable[tuple[str, bytes]], run_uri: str, chapter: int) -> dict[str, str]:
    """Write the members as one shard; what the table's `heatmap` column says of each."""
    kept = list(members)
    if not kept:
        return {}
    shard = pack(kept, chapter)
    storage.patiently(lambda: storage.write_bytes(storage.join(run_uri, shard.name), shard.data))
    return {name: shard.reference(name) for name, _ in kept}
