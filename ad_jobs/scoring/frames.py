"""The frames of a source in this process, decoded as a model's scan would decode them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from ad_jobs.archive.containers_names import group_of
from ad_jobs.archive.fetching import Source, fetch_all, prepare
from ad_jobs.archive.sources import SourceObject
from ad_jobs.images.domain import Domain
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scoring.held_out import HeldOut, kept

log = logging.getLogger("retroscan.frames")


def as_sources(listed: Sequence[SourceObject]) -> list[Source]:
    """The objects to fetch, numbered in their order."""
    return [Source(number, o.uri, o.bytes, o.etag, o.within) for number, o in enumerate(listed)]


def frames_of(
    listed: Sequence[SourceObject], policy: PixelPolicy, limits: Limits, domain: Domain, left_out: str
) -> Iterator[HeldOut]:
    """The frames of every object that decodes and that `domain` takes, object by object.

    Of the others a warning tells what each is `left_out` of, and why.
    """
    with GuardedDecoder() as decoder:
        for fetched in fetch_all(as_sources(listed), limits.max_bytes):
            ready = prepare(fetched, policy, limits, decoder, [domain])
            why = ready.error.code if ready.error is not None else ready.refused[0]
            if why is not None:
                log.warning("left out of %s: %s (%s)", left_out, ready.source.uri, why)
            group = listed[ready.source.object_id].group or ready.header.get("study_uid") or group_of(ready.source.uri)
            series = str(ready.header.get("series_uid") or group)
            header = kept(ready.header)
            for frame in ready.frames:
                yield HeldOut(frame.pixels, str(ready.content_sha256), frame.index, str(group), series, header)
