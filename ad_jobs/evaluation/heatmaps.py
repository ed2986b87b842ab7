"""The heatmaps of a run that labels judge: which they are, and reading them by few large reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ad_jobs.errors import JobError, UsageError
from ad_jobs.images.geometry import Geometry
from ad_jobs.results.heatmaps import Reference, decode_png, parse_reference
from cluster import storage
from cluster.counting import counted

# Neighbouring heatmaps of a shard are read together, and what lies between them is thrown away.
READ_BYTES = 8 << 20
GAP_BYTES = 64 << 10


class JudgedHeatmap(NamedTuple):
    """One heatmap to be judged: where it lies, what its bootstrap weight hangs on, its mask's URI if abnormal."""

    reference: Reference
    group: str
    mask: str | None


class Selected(NamedTuple):
    """The heatmaps to judge, as they lie in storage; `why_none` says why there are none, `left_out` have no mask."""

    heatmaps: list[JudgedHeatmap]
    left_out: int
    why_none: str | None


def select(judged: pd.DataFrame, groups: list[str]) -> Selected:
    """The heatmaps of the normal images and of those anomalous ones that have a mask.

    Args:
        judged: scored images with uri, anomalous, mask, heatmaps.
        groups: what each of them is drawn with.

    Raises:
        UsageError: a mask of an object of several frames.
    """
    marked = judged["mask"].notna() & judged["anomalous"]
    if not marked.any():
        why = "No anomalous image has a mask (column mask of LABELS), so there is nothing to judge pixels by."
        return Selected([], 0, why)
    left_out = int((judged["anomalous"] & ~marked).sum())
    found: list[JudgedHeatmap] = []
    without_heatmap = 0
    for i in np.flatnonzero(marked | ~judged["anomalous"]):
        references = judged["heatmaps"].iloc[i]
        mask = judged["mask"].iloc[i] if marked.iloc[i] else None
        if mask is not None and len(references) > 1:
            raise UsageError(
                "A mask belongs to one frame.",
                f"{judged['uri'].iloc[i]} has {counted(len(references), 'frame')}",
                "Add the column frame to LABELS, one line a frame.",
            )
        if None in references:
            without_heatmap += 1
        else:
            found += [JudgedHeatmap(parse_reference(text), groups[i], mask) for text in references]
    if without_heatmap:
        why = f"The heatmaps of {counted(without_heatmap, 'labelled image')} were not kept: scan with --heatmaps all."
        return Selected([], left_out, why)
    return Selected(sorted(found, key=lambda heatmap: heatmap.reference), left_out, None)


def read_heatmaps(
    run_uri: str, heatmaps: list[JudgedHeatmap]
) -> Iterator[tuple[JudgedHeatmap, npt.NDArray[np.float32], Geometry]]:
    """Each heatmap [H, W] with its geometry, in the order given: that of shards and offsets.

    Raises:
        JobError: a shard is gone, or damaged.
    """
    for batch in batches(heatmaps):
        shard, start, _ = batch[0].reference
        end = max(heatmap.reference.offset + heatmap.reference.length for heatmap in batch)
        uri = storage.join(run_uri, shard)
        try:
            data = storage.fetch_range(uri, start, end - start)
        except storage.NotFound as error:
            raise JobError(f"The heatmap shard {uri} is gone.", "Restore it, or scan again.") from error
        for heatmap in batch:
            _, offset, length = heatmap.reference
            stored = decode_png(data[offset - start : offset - start + length])
            yield heatmap, stored.values, stored.geometry


def batches(
    heatmaps: list[JudgedHeatmap], read_bytes: int = READ_BYTES, gap_bytes: int = GAP_BYTES
) -> Iterator[list[JudgedHeatmap]]:
    """Runs of neighbours of one shard that are read at once: `read_bytes` at most, no gap over `gap_bytes`."""
    batch: list[JudgedHeatmap] = []
    for heatmap in heatmaps:
        if batch:
            first, last, this = batch[0].reference, batch[-1].reference, heatmap.reference
            near = this.offset - (last.offset + last.length) <= gap_bytes
            fits = this.offset + this.length - first.offset <= read_bytes
            if this.shard != first.shard or not (near and fits):
                yield batch
                batch = []
        batch.append(heatmap)
    if batch:
        yield batch
