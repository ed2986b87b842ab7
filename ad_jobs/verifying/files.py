"""Are the run's files those that its record lists, and no others?"""

from __future__ import annotations

import pyarrow as pa

from ad_jobs.results.parts import (
    HEATMAPS_FOLDER,
    SCORES_FOLDER,
    HeatmapPart,
    ScorePart,
    part_rows,
    read_shard,
    sha256_of,
)
from ad_jobs.results.run import RunRecord
from cluster import storage


def check_score_parts(run_uri: str, record: RunRecord) -> list[str]:
    """How the files of the score table differ from those that the record lists."""
    differences = _strays(run_uri, SCORES_FOLDER, [part.name for part in record.parts])
    for part in record.parts:
        wrong = _changed(run_uri, part)
        differences += [wrong] if wrong else _rows(run_uri, part)
    return differences


def _rows(run_uri: str, part: ScorePart) -> list[str]:
    try:
        rows = part_rows(storage.join(run_uri, part.name))
    except pa.ArrowException as error:
        return [f"{part.name}: no whole Parquet file ({error})"]
    return [] if rows == part.rows else [f"{part.name}: {rows} rows; run.json has {part.rows}"]


def check_heatmap_parts(run_uri: str, record: RunRecord) -> tuple[dict[str, int], list[str]]:
    """The sum of the `member_mark`s of each whole shard, and how shards differ from those that the record lists."""
    marks: dict[str, int] = {}
    differences = _strays(run_uri, HEATMAPS_FOLDER, [part.name for part in record.heatmap_parts])
    for part in record.heatmap_parts:
        try:
            found = read_shard(run_uri, part.name)
        except (OSError, storage.StorageError) as error:
            differences.append(f"{part.name}: cannot be read ({error})")
            continue
        if found is None:
            differences.append(f"{part.name}: no whole tar")
            continue
        now, marks[part.name] = found
        if now != part:
            differences.append(f"{part.name}: {_told(now)}; run.json has {_told(part)}")
    return marks, differences


def _told(part: HeatmapPart) -> str:
    return f"sha256 {part.sha256[:12]}…, {part.bytes} bytes, {part.members} members"


def _strays(run_uri: str, folder: str, listed: list[str]) -> list[str]:
    root = storage.join(run_uri, folder)
    names = storage.list_names(root) if storage.is_folder(root) else []
    # What a killed process was writing is no part of any run.
    found = {f"{folder}/{name}" for name in names if not storage.is_temporary(name)}
    twice = [f"{name}: twice in run.json" for name in sorted({name for name in listed if listed.count(name) > 1})]
    return twice + [f"{name}: not in run.json" for name in sorted(found - set(listed))]


def _changed(run_uri: str, part: ScorePart) -> str | None:
    try:
        found, size = sha256_of(storage.join(run_uri, part.name))
    except (OSError, storage.StorageError) as error:
        return f"{part.name}: cannot be read ({error})"
    if (found, size) == (part.sha256, part.bytes):
        return None
    return f"{part.name}: sha256 {found[:12]}…, {size} bytes; run.json has {part.sha256[:12]}…, {part.bytes} bytes"
