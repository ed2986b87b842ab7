"""The images of a source, decoded once in parallel.

What the memory allows stays decoded, the rest is decoded again when it is read.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ad_jobs.archive.containers_names import group_of
from ad_jobs.archive.fetching import Source, fetch_all, prepare
from ad_jobs.archive.sources import SourceObject
from ad_jobs.errors import ImageError, JobError
from ad_jobs.images.domain import Sight
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scoring.held_out import kept as kept_of_header
from cluster import object_store as store
from cluster.counting import counted
from cluster.division import Node

log = logging.getLogger("retroscan.fit")

# Objects decoded by one task.
CHUNK = 64
# Images decoded before they are asked for.
READ_AHEAD = 32
# Of an object store, for decoded images.
KEPT_SHARE = 0.5

# [c, H, W].
Pixels = NDArray[np.uint16]


class Place(NamedTuple):
    """Where an image comes from."""

    # Number in the source.
    object: int
    frame: int
    # Among the images of its chunk.
    row: int


@dataclass(frozen=True)
class ImageSet:
    """All images of one source that could be decoded, in its order. Small enough to be sent to every worker."""

    sources: list[Source]
    places: list[Place]
    # Of every image: what is held out together, or not at all.
    group: list[str]
    # Of every image: its series, or else its group.
    series: list[str]
    # Of every image: what a calibration keeps of its object's header (scoring.held_out.HEADER).
    header: list[dict[str, Any]]
    # Of every image: its object's bytes.
    sha256: list[str]
    # Of every image: height and width of its pixels.
    size_px: list[tuple[int, int]]
    # Of every `chunk_objects` sources: list[Pixels] in the object store; None where not kept.
    chunks: list[store.Ref | None]
    kept_bytes: int
    # Objects by error code.
    failed: dict[str, int]
    # None of them is in colour.
    grey: bool
    # Of every object that could be decoded.
    seen: list[Sight]
    policy: PixelPolicy
    limits: Limits
    chunk_objects: int = CHUNK

    def __len__(self) -> int:
        return len(self.places)


class Reader:
    """Images of a set by position, in any order. It may hold a decoder process: close it."""

    def __init__(self, images: ImageSet, *, read_ahead: int = READ_AHEAD) -> None:
        self._images, self._read_ahead = images, read_ahead
        # Chunks; their arrays lie in the object store.
        self._open: dict[int, list[Pixels]] = {}
        self._decoder = GuardedDecoder()

    def close(self) -> None:
        """End the decoder."""
        self._decoder.close()

    def read(self, positions: Sequence[int]) -> Generator[Pixels, None, None]:
        """The images at `positions` in this order, a bounded number of them decoded ahead.

        Raises:
            JobError: an object changed, or can be read no longer, since the set was made.
        """
        places = [self._images.places[position] for position in positions]
        missing = [
            position
            for position, place in zip(positions, places, strict=True)
            if self._images.chunks[place.object // self._images.chunk_objects] is None
        ]
        with closing(_ahead(self._decoded(missing), self._read_ahead)) as decoded:
            for place in places:
                chunk = self._chunk(place.object // self._images.chunk_objects)
                yield next(decoded) if chunk is None else chunk[place.row]

    def _chunk(self, number: int) -> list[Pixels] | None:
        ref = self._images.chunks[number]
        if ref is not None and number not in self._open:
            self._open[number] = store.get(ref)
        return self._open.get(number)

    def _decoded(self, positions: Sequence[int]) -> Iterator[Pixels]:
        images = self._images
        sources = [images.sources[images.places[position].object] for position in positions]
        with closing(fetch_all(sources, images.limits.max_bytes)) as fetched:
            for position, (source, data, *_) in zip(positions, fetched, strict=True):
                if data is None or hashlib.sha256(data).hexdigest() != images.sha256[position]:
                    raise JobError(
                        "Images stay as they are while a model is fitted on them. "
                        f"Got: {source.uri}, which changed or is gone.",
                        "Restore it, or fit anew into another folder.",
                    )
                frame = images.places[position].frame
                try:
                    decoded = self._decoder.decode(data, images.policy, images.limits, only=frame)
                except ImageError as error:
                    raise JobError(
                        f"{source.uri} could be decoded once and cannot again ({error}).",
                        "The same command continues from the last checkpoint.",
                    ) from error
                yield decoded.frames[0].pixels


def _ahead(items: Iterator[Pixels], count: int) -> Generator[Pixels, None, None]:
    """The items, the next `count` of them made by a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item


# --- Making one


def room_for_images(nodes: Sequence[Node]) -> int:
    """Bytes of decoded images that may stay in memory, where every node that can work holds a copy of all of them."""
    return int(KEPT_SHARE * min(node.object_store for node in nodes if node.cpus >= 1))


class Report(NamedTuple):
    """What a task found in one object."""

    sight: Sight

    object: int
    # Of every frame.
    size_px: list[tuple[int, int]]
    study: str | None
    series: str | None
    # As scoring.held_out.HEADER.
    header: dict[str, Any]
    sha256: str | None
    grey: bool
    # Why it holds no image.
    code: str | None


def decode_all(
    objects: list[SourceObject],
    policy: PixelPolicy,
    limits: Limits,
    what: str,
    *,
    cpus: float,
    keep_bytes: int,
    chunk_objects: int = CHUNK,
) -> ImageSet:
    """Fetch and decode every object, in parallel tasks; bad ones are counted and left out.

    Args:
        objects: the source.
        policy: how pixels are prepared.
        limits: what one object may cost.
        what: `normal` or `anomalous`, for messages.
        cpus: of the cluster: how many tasks run at once.
        keep_bytes: how much of the decoded images may stay in the object store.
        chunk_objects: objects decoded by one task.

    Raises:
        JobError: not one image could be decoded.
    """
    sources = [Source(number, o.uri, o.bytes, o.etag, o.within) for number, o in enumerate(objects)]
    places: list[Place] = []
    group: list[str] = []
    series: list[str] = []
    header: list[dict[str, Any]] = []
    sha256: list[str] = []
    size_px: list[tuple[int, int]] = []
    kept: list[store.Ref | None] = []
    failed: Counter[str] = Counter()
    left = keep_bytes
    kept_bytes = 0
    grey = True
    seen: list[Sight] = []

    def chunks() -> Iterator[tuple[list[Source], PixelPolicy, Limits, int]]:
        for start in range(0, len(sources), chunk_objects):
            yield sources[start : start + chunk_objects], policy, limits, left

    for ref, (nbytes, reports) in store.run(_decode_chunk, chunks(), cpus=1, ahead=2 * max(1, int(cpus))):
        # Tasks that ran at the same time were told of the same room.
        fits = nbytes is not None and nbytes <= left
        kept.append(ref if fits else None)
        kept_bytes += nbytes if fits else 0
        left = left - nbytes if fits else 0
        row = 0
        for report in reports:
            o = objects[report.object]
            if report.code is not None:
                failed[report.code] += 1
                log.warning("%s image left out: %s (%s)", what, o.uri, report.code)
                continue
            seen.append(report.sight)
            grey = grey and report.grey
            for frame, size in enumerate(report.size_px):
                places.append(Place(report.object, frame, row))
                # Images of one group of the list, of one study or of one container are held out together or not at all.
                group.append(o.group or report.study or group_of(o.uri))
                series.append(report.series or group[-1])
                header.append(report.header)
                sha256.append(str(report.sha256))
                size_px.append(size)
                row += 1
    if not places:
        raise JobError(
            f"None of {counted(len(objects), what + ' image')} could be decoded ({dict(failed)}).",
            "Look at one with another viewer; the codes are explained in docs/columns.md.",
        )
    if None in kept:
        share = 100 * kept.count(None) / len(kept)
        log.info("%.0f %% of the %s images are decoded again in every epoch: no more fit into memory.", share, what)
    return ImageSet(
        sources,
        places,
        group,
        series,
        header,
        sha256,
        size_px,
        kept,
        kept_bytes,
        dict(failed),
        grey,
        seen,
        policy,
        limits,
        chunk_objects,
    )


def _decode_chunk(
    sources: list[Source], policy: PixelPolicy, limits: Limits, keep_bytes: int
) -> tuple[list[Pixels], tuple[int | None, list[Report]]]:
    """The pixels, and their size with what is known of each object; neither where they are too large."""
    pixels: list[Pixels] = []
    size: int | None = 0
    reports = []
    with GuardedDecoder() as decoder:
        for fetched in fetch_all(sources, limits.max_bytes):
            ready = prepare(fetched, policy, limits, decoder)
            code = ready.error.code.value if isinstance(ready.error, ImageError) else None
            study = ready.header.get("study_uid")
            reports.append(
                Report(
                    Sight.of(ready.header, ready.frames),
                    ready.source.object_id,
                    [frame.geometry.size_px for frame in ready.frames],
                    str(study) if study else None,
                    str(ready.header.get("series_uid") or "") or None,
                    kept_of_header(ready.header),
                    ready.content_sha256,
                    all(len(frame.pixels) == 1 for frame in ready.frames),
                    code,
                )
            )
            if size is not None:
                size += sum(frame.pixels.nbytes for frame in ready.frames)
                pixels += [frame.pixels for frame in ready.frames]
                if size > keep_bytes:
                    size = None
                    pixels.clear()
    return pixels, (size, reports)
