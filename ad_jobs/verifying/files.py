"""Are the run's files those that its record lists, and no others?"""

from __future__ import annotations

from ad_jobs.results.parts import (
    HEATMAPS_FOLDER,
    SCORES_FOLDER,
    HeatmapPart,
    ScorePart,
    describe_heatmap_part,
    part_rows,
    sha256_of,
)
from ad_jobs.results.run import RunRecord
from cluster import storage


def check_score_parts(run_uri: str, record: RunRecord) -> list[str]:
    """How the files of the score table differ from those that the record lists."""
    differences = _strays(run_uri, SCORES_FOLDER, [part.name for part in record.parts])
    for part in record.parts:
        wrong = _changed(run_uri, part)
        if wrong is None and (rows := part_rows(storage.join(run_uri, part.name))) != part.rows:
            wrong = f"{part.name}: {rows} rows; run.json has {part.rows}"
        differences += [wrong] if wrong else []
    return differences


def check_heatmap_parts(run_uri: str, record: RunRecord) -> list[str]:
    """How the heatmap shards differ from those that the record lists."""
    differences = _strays(run_uri, HEATMAPS_FOLDER, [part.name for part in record.heatmap_parts])
    for part in record.heatmap_parts:
        wrong = _changed(run_uri, part)
        if wrong is None and (found := describe_heatmap_part(run_uri, part.name)) != part:
            wrong = f"{part.name}: {found.members if found else 'no'} members; run.json has {part.members}"
        differences += [wrong] if wrong else []
    return differences


def _strays(run_uri: str, folder: str, listed: list[str]) -> list[str]:
    root = storage.join(run_uri, folder)
    names = storage.list_names(root) if storage.is_folder(root) else []
    # What a killed process was writing is no part of any run.
    found = {f"{folder}/{name}" for name in names if not storage.is_temporary(name)}
    twice = [f"{name}: twice in run.json" for name in sorted({name for name in listed if listed.count(name) > 1})]
    return twice + [f"{name}: not in run.json" for name in sorted(found - set(listed))]


def _changed(run_uri: str, part: ScorePart | HeatmapPart) -> str | None:
    try:
        found, size = sha256_of(storage.join(run_uri, part.name))
    except (OSError, storage.StorageError) as error:
        return f"{part.name}: cannot be read ({error})"
    if (found, size) == (part.sha256, part.bytes):
        return None
    return f"{part.name}: sha256 {found[:12]}…, {size} bytes; run.json has {part.sha256[:12]}…, {part.bytes} bytes"
