"""What a run has done, in chapters: objects in order of their ids, so many at a time, each committed as a whole.

A chapter's parts say by themselves which of its objects are done: a part is written whole or not at all, and holds its
objects' ids. When none is left, the chapter's counts and its parts with their digests are committed in one small file,
and its parts are not looked at again. So a run that is continued costs what is left of it, and knows of finished
objects no more than of those in one chapter.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ad_jobs.errors import JobError
from ad_jobs.results.count import Counts, assert_balanced, count_table
from ad_jobs.results.parts import (
    HeatmapPart,
    ScorePart,
    chapter_prefix,
    describe_heatmap_parts,
    describe_parts,
    heatmap_part_uris,
    part_uris,
)
from ad_jobs.schema import FAILED
from cluster import storage

log = logging.getLogger("retroscan.scan")


class Chapter(BaseModel):
    """A committed chapter: its counts and its parts. The content of `checkpoint-…/chapter-….json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    counts: Counts
    parts: list[ScorePart]
    heatmap_parts: list[HeatmapPart]


def record_uri(folder: str, number: int) -> str:
    """Where a chapter is written down, in a run's checkpoint folder."""
    return storage.join(folder, f"chapter-{number:05d}.json")


def committed(folder: str) -> dict[int, Chapter]:
    """The committed chapters in a run's checkpoint folder, by number."""
    try:
        names = storage.list_names(folder)
    except storage.NotFound:
        return {}
    chapters = (Chapter.model_validate_json(storage.read_bytes(storage.join(folder, name))) for name in names)
    return {chapter.number: chapter for chapter in chapters}


class Left(NamedTuple):
    """What is left of a chapter: the objects that are in none of its parts; and how many of the others failed."""

    objects: pa.Table
    failed: int


def left_to_do(out: str, number: int, objects: pa.Table, *, mend: bool = True) -> Left:
    """What is left of a chapter, by its parts as they lie in storage.

    Where two parts hold the same object, as when a process that was thought dead still wrote one, the second is deleted
    and the rest of its objects are done again; not `mend`: it is left alone, and does not count.
    """
    ids = objects["object_id"].to_numpy()
    done = np.zeros(len(ids), bool)
    failed = 0
    for uri in part_uris(out, chapter_prefix(number)):
        filesystem, path = storage.filesystem(uri)
        with filesystem.open_input_file(path) as file:
            rows = pq.read_table(file, columns=["object_id", "status"])
        held = np.unique(rows["object_id"].to_numpy())
        places = _places(ids, held, uri)
        if done[places].any():
            if mend:
                log.warning("%s holds objects that another part holds too: dropped.", uri)
                storage.delete(uri)
        else:
            done[places] = True
            failed += len(rows.filter(pc.equal(rows["status"], FAILED))["object_id"].unique())
    return Left(objects if not done.any() else objects.filter(pa.array(~done)), failed)


def _places(ids: NDArray[np.int64], held: NDArray[np.int64], uri: str) -> NDArray[np.int64]:
    places = np.minimum(np.searchsorted(ids, held), len(ids) - 1)
    if not (ids[places] == held).all():
        raise JobError(
            f"{uri} holds objects that this run's manifest does not have in that chapter.",
            "The folder was changed by hand. Scan into a new one.",
        )
    return places


def commit(folder: str, out: str, number: int, objects: pa.Table, model_ids: list[str]) -> Chapter:
    """Count a chapter whose objects are all done, assert its balance, and write it down.

    Counts and digests come from the parts as they lie in storage, never from what a task believed it wrote.

    Raises:
        JobError: not every object is there exactly once, under every model.
    """
    ids, prefix = objects["object_id"].to_numpy(), chapter_prefix(number)
    table = count_table(out, objects=len(ids), model_ids=model_ids, selected=ids, prefix=prefix)
    assert_balanced(table, len(ids))
    _drop_orphans(out, prefix)
    chapter = Chapter(
        number=number,
        counts=table.counts,
        parts=describe_parts(out, prefix),
        heatmap_parts=describe_heatmap_parts(out, prefix),
    )
    storage.patiently(lambda: storage.write_bytes(record_uri(folder, number), chapter.model_dump_json().encode()))
    return chapter


def _drop_orphans(out: str, prefix: str) -> None:
    """Delete heatmap shards that no row refers to: those of a part that was dropped, or never came to be."""
    referenced: set[str] = set()
    for uri in part_uris(out, prefix):
        filesystem, path = storage.filesystem(uri)
        with filesystem.open_input_file(path) as file:
            column = pq.read_table(file, columns=["heatmap"])["heatmap"].drop_null()
        referenced |= {reference.partition("#")[0] for reference in np.unique(column.to_numpy())}
    for uri in heatmap_part_uris(out, prefix):
        if uri.removeprefix(f"{out}/") not in referenced:
            log.info("Dropping %s: no row refers to it.", uri)
            storage.delete(uri)
