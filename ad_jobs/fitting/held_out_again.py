"""The normal images that several fits held out, read again: what may judge their models together.

A calibration keeps the digests of the images it came from, so that they are found in the source by their content, and
only they are decoded.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ad_jobs.archive.fetching import fetch_all
from ad_jobs.archive.sources import SourceObject, read_source
from ad_jobs.errors import JobError, UsageError
from ad_jobs.images.domain import Domain
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scoring.calibration import kept_calibrations, kept_held_out
from ad_jobs.scoring.frames import as_sources, frames_of
from ad_jobs.scoring.held_out import HeldOut, read_held_out
from ad_jobs.scoring.model_store import FittedModel
from cluster.counting import counted

log = logging.getLogger("retroscan.fuse")

ANOTHER = "Name normal images that no member was fitted on with --normal SOURCE."

# SHA-256 of an object's bytes, and a frame of it: how often it was held out.
Frames = Counter[tuple[str, int]]


@dataclass(frozen=True)
class NormalImages:
    """Normal images that can be read several times: `wanted` names their frames, None takes all."""

    source: str
    objects: Sequence[SourceObject]
    limits: Limits
    domain: Domain
    wanted: Frames | None = None

    def frames(self, policy: PixelPolicy) -> Iterator[HeldOut]:
        """The frames under a policy, in one order each time.

        Raises:
            JobError: an image changed, or can be read no longer.
        """
        left = None if self.wanted is None else self.wanted.copy()
        for one in frames_of(self.objects, policy, self.limits, self.domain, "the fusion"):
            if left is None:
                yield one
            elif left[one.object, one.frame]:
                left[one.object, one.frame] -= 1
                yield one
        if left is not None and (missing := left.total()):
            raise JobError(
                f"{counted(missing, 'held-out frame')} of {self.source} can be read no longer.",
                f"Restore them. {ANOTHER}",
            )


def held_out_again(models: Mapping[str, FittedModel], limits: Limits) -> NormalImages:
    """The normal images that the fits of all these models, by their places, held out, whatever a domain says now.

    Raises:
        UsageError: they held out different ones, or their source is gone, or has not all of them any more.
    """
    place, first = next(iter(models.items()))
    of_first = _digest(place, first)
    for other, model in models.items():
        if _digest(other, model) != of_first:
            raise UsageError(
                "Members are judged together by normal images that all of them held out.",
                f"{place} and {other}, whose fits held out different ones",
                f"Fit them on the same images with the same --seed. {ANOTHER}",
            )
    wanted = _frames_held_out(models, of_first)
    source = str(first.record["data"]["normal"])
    try:
        listed = read_source(source)
    except UsageError as error:
        raise UsageError("The images that members held out lie where they were.", str(error), ANOTHER) from error
    objects = _among(listed, {digest for digest, _ in wanted}, limits)
    found = Counter(digest for digest, _ in objects)
    needed = Counter({digest: max(n for (one, _), n in wanted.items() if one == digest) for digest, _ in wanted})
    if missing := (needed - found).total():
        raise UsageError(
            "The images that members held out lie where they were.",
            f"{source}, where {counted(missing, 'object')} of {needed.total()} changed or is gone",
            f"Restore them. {ANOTHER}",
        )
    log.info("%s of %s, which the fits held out.", counted(wanted.total(), "normal frame"), source)
    return NormalImages(source, [o for _, o in objects], limits, Domain(), wanted)


def _digest(place: str, model: FittedModel) -> str:
    try:
        return str(model.record["data"]["held_out_sha256"])
    except KeyError as error:
        raise UsageError("A member's record tells what its fit held out.", f"{place}, without it", ANOTHER) from error


def _frames_held_out(models: Mapping[str, FittedModel], digest: str) -> Frames:
    """The frames that were held out, from the first calibration of any of the models."""
    for model in models.values():
        for calibration in kept_calibrations(model.uri).calibrations:
            if calibration.held_out_sha256 is None:
                continue
            table = read_held_out(kept_held_out(model.uri, calibration.id), calibration.held_out_sha256)
            rows = table.select(["object", "frame", "anomalous"]).to_pylist()
            frames = Counter((row["object"], row["frame"]) for row in rows if not row["anomalous"])
            if _digest_of(frames) == digest:
                return frames
    raise UsageError(
        "A member keeps the calibration of its fit, which names the images that were held out.",
        f"{', '.join(models)}, of which none does",
        f"Restore calibrations/ of one of them, or fit it again. {ANOTHER}",
    )


def _digest_of(frames: Frames) -> str:
    """As a fit's record has it."""
    return hashlib.sha256("\n".join(sorted(f"{o}/{f}" for o, f in frames.elements())).encode()).hexdigest()


def _among(listed: Sequence[SourceObject], digests: set[str], limits: Limits) -> list[tuple[str, SourceObject]]:
    """The objects whose bytes have one of the digests."""
    found = []
    for fetched in fetch_all(as_sources(listed), limits.max_bytes):
        if fetched.data is None:
            continue
        digest = hashlib.sha256(fetched.data).hexdigest()
        if digest in digests:
            found.append((digest, listed[fetched.source.object_id]))
    return found
