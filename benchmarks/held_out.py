"""The normal images of a cell as a fit splits them, and what thresholds from the held-out ones find in the judged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ad_jobs.archive.fetching import Source, fetch_all, prepare
from ad_jobs.archive.sources import read_source
from ad_jobs.evaluation.intervals import rate
from ad_jobs.fitting.split import split_by_group
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.schema import is_flagged
from ad_jobs.scoring.thresholds import threshold_for_fpr

# Of false positives among held-out normals.
RATES = (0.01, 0.05)

# [c, H, W].
Pixels = NDArray[np.uint16]


class Decoded(NamedTuple):
    """An image with the place and size it came from."""

    uri: str
    frame: int
    bytes: int | None
    # What a fit holds out together.
    group: str
    rows: int
    columns: int
    pixels: Pixels


def decoded(source: str, policy: PixelPolicy, limits: Limits) -> list[Decoded]:
    """The images of a source that can be decoded, frame by frame, in its order."""
    objects = read_source(source)
    sources = [Source(number, o.uri, o.bytes, within=o.within) for number, o in enumerate(objects)]
    found = []
    with GuardedDecoder() as decoder:
        for fetched in fetch_all(sources, limits.max_bytes):
            ready = prepare(fetched, policy, limits, decoder)
            o = objects[ready.source.object_id]
            group = str(o.group or ready.header.get("study_uid") or o.uri)
            for frame in ready.frames:
                shape = frame.geometry.rows, frame.geometry.columns
                found.append(Decoded(o.uri, frame.index, ready.bytes, group, *shape, frame.pixels))
    return found


def split(images: list[Decoded], seed: int) -> tuple[list[Decoded], list[Decoded]]:
    """The normal images that a fit with this seed learns from, and those it holds out."""
    fitted, held_out = split_by_group([image.group for image in images], seed)
    return [images[n] for n in fitted], [images[n] for n in held_out]


def sensitivities(
    held_out: Iterable[float], scores: NDArray[np.float64], anomalous: NDArray[np.bool_]
) -> dict[str, Any]:
    """At each of RATES: the threshold that so many held-out normals are above, and what of the judged images is.

    The threshold is set as `calibrate --max-fpr` does; both rates come with their exact 95 % interval.
    """
    normal = np.array(list(held_out), np.float32)
    found = {}
    for max_fpr in RATES:
        threshold = threshold_for_fpr(normal, max_fpr).threshold
        flagged = is_flagged(scores.astype(np.float32), threshold)
        found[f"{max_fpr:g}"] = {
            "threshold": threshold,
            "n_held_out": len(normal),
            "sensitivity": rate(int(flagged[anomalous].sum()), int(anomalous.sum())),
            "fpr": rate(int(flagged[~anomalous].sum()), int((~anomalous).sum())),
        }
    return found
