"""What a run has done, in chapters: objects in order of their ids, so many at a time, each committed as a whole.

A chapter's parts say by themselves which of its objects are done: a part is written whole or not at all, and holds its
objects' ids. When none is left, the chapter's counts and its parts with their digests are committed in one small file,
and its parts are not looked at again. So a run that is continued costs what is left of it, and knows of finished
objects no more than of those in one chapter.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ad_jobs.errors import JobError
from ad_jobs.results.count import Counts, assert_balanced, count_table
from ad_jobs.results.heatmaps import parse_reference
from ad_jobs.results.parts import (
    HEATMAPS_FOLDER,
    SCORES_FOLDER,
    HeatmapPart,
    ScorePart,
    chapter_prefix,
    describe_heatmap_part,
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


def committed(folder: str, out: str) -> dict[int, Chapter]:
    """The committed chapters in a run's checkpoint folder, by number.

    None is one that is not wholly written, or whose parts in `out` have not the sizes that they were committed with.
    """
    sizes = {**_sizes(out, SCORES_FOLDER), **_sizes(out, HEATMAPS_FOLDER)}
    found = {}
    for info in _listed(folder):
        try:
            chapter = Chapter.model_validate_json(storage.read_bytes(info.uri))
        except ValidationError:
            log.warning("%s is not whole: its chapter is counted again.", info.uri)
            continue
        parts: list[ScorePart | HeatmapPart] = [*chapter.parts, *chapter.heatmap_parts]
        if all(sizes.get(part.name) == part.bytes for part in parts):
            found[chapter.number] = chapter
        else:
            log.warning("Parts of chapter %d were changed or removed: it is looked at again.", chapter.number)
    return found


def _sizes(out: str, folder: str) -> dict[str, int]:
    return {info.uri.removeprefix(f"{out}/"): info.bytes for info in _listed(storage.join(out, folder))}


def _listed(folder: str) -> list[storage.ObjectInfo]:
    try:
        return [info for info in storage.list_objects(folder) if not storage.is_temporary(info.uri)]
    except storage.NotFound:
        return []


class Left(NamedTuple):
    """What is left of a chapter: the objects that are in none of its parts; and how many of the others failed."""

    objects: pa.Table
    failed: int


def left_to_do(out: str, run_id: str, number: int, objects: pa.Table, *, mend: bool = True) -> Left:
    """What is left of a chapter, by its parts as they lie in storage.

    A part is this run's if its rows say so, whatever its name.
    One that is not, or is not whole, is deleted.
    So is the second of two that hold the same object, as when a process that was thought dead still wrote one: the rest
    of its objects are done again.
    Not `mend`: such a part is left alone, and does not count.
    """
    ids = objects["object_id"].to_numpy()
    done = np.zeros(len(ids), bool)
    failed = 0
    for uri in part_uris(out, chapter_prefix(number)):
        rows = read_whole(uri, ["object_id", "status", "run_id"])
        if rows is None:
            fault = "is not whole"
        elif rows["run_id"].unique().to_pylist() != [run_id]:
            fault = "is of another run"
        else:
            held = np.unique(rows["object_id"].to_numpy())
            places = _places(ids, held, uri)
            if not done[places].any():
                done[places] = True
                failed += len(rows.filter(pc.equal(rows["status"], FAILED))["object_id"].unique())
                continue
            fault = "holds objects that another part holds too"
        if mend:
            log.warning("%s %s: dropped.", uri, fault)
            storage.delete(uri)
    return Left(objects if not done.any() else objects.filter(pa.array(~done)), failed)


def read_whole(uri: str, columns: list[str]) -> pa.Table | None:
    """Columns of a part; None if the file is not a whole part of a score table."""
    filesystem, path = storage.filesystem(uri)
    try:
        with filesystem.open_input_file(path) as file:
            return pq.read_table(file, columns=columns).select(columns)
    except (pa.ArrowException, OSError, KeyError):
        # OSError is pyarrow's word for a store that fails, and for some damage: whether it is the store shows here.
        content = pa.BufferReader(storage.read_bytes(uri))
    try:
        return pq.read_table(content, columns=columns).select(columns)
    except (pa.ArrowException, OSError, KeyError):
        return None


def _places(ids: NDArray[np.int64], held: NDArray[np.int64], uri: str) -> NDArray[np.int64]:
    places = np.minimum(np.searchsorted(ids, held), len(ids) - 1)
    if not (ids[places] == held).all():
        raise JobError(
            f"{uri} holds objects that this run's manifest does not have in that chapter.",
            "The folder was changed by hand. Scan into a new one.",
        )
    return places


def commit(folder: str, out: str, run_id: str, number: int, objects: pa.Table, model_ids: list[str]) -> Chapter | None:
    """Count a chapter whose objects are all done, assert its balance, and write it down.

    Counts and digests come from the parts as they lie in storage, never from what a task believed it wrote.
    None if a part had to be dropped, as its heatmaps are not all there: then something is left to be done.

    Raises:
        JobError: not every object is there exactly once, under every model.
    """
    ids, prefix = objects["object_id"].to_numpy(), chapter_prefix(number)
    table = count_table(part_uris(out, prefix), objects=len(ids), run_id=run_id, model_ids=model_ids, selected=ids)
    assert_balanced(table, len(ids))
    shards = _kept_shards(out, prefix)
    if shards is None:
        return None
    chapter = Chapter(number=number, counts=table.counts, parts=describe_parts(out, prefix), heatmap_parts=shards)
    storage.patiently(lambda: storage.write_bytes(record_uri(folder, number), chapter.model_dump_json().encode()))
    return chapter


def _kept_shards(out: str, prefix: str) -> list[HeatmapPart] | None:
    """The heatmap shards that rows refer to; None if some of them are not whole, whose parts are then deleted.

    Shards that no row refers to are deleted: those of a part that was dropped, or never came to be.
    """
    referring: dict[str, set[str]] = {}
    needed: Counter[str] = Counter()
    for uri in part_uris(out, prefix):
        filesystem, path = storage.filesystem(uri)
        with filesystem.open_input_file(path) as file:
            column = pq.read_table(file, columns=["heatmap"])["heatmap"].drop_null()
        for reference in column.to_pylist():
            shard, offset, length = parse_reference(reference)
            referring.setdefault(shard, set()).add(uri)
            needed[shard] = max(needed[shard], offset + length)
    found = {}
    for uri in heatmap_part_uris(out, prefix):
        name = uri.removeprefix(f"{out}/")
        part = describe_heatmap_part(out, name) if name in referring else None
        if part is not None and part.bytes >= needed[name]:
            found[name] = part
        else:
            log.info("Dropping %s: %s.", uri, "it is not whole" if name in referring else "no row refers to it")
            storage.delete(uri)
    broken = set().union(*(referring[name] for name in referring.keys() - found.keys()))
    for uri in sorted(broken):
        log.warning("%s refers to heatmaps that are not there: dropped.", uri)
        storage.delete(uri)
    return None if broken else [found[name] for name in sorted(found)]
