"""Are the run's files those that its record lists, and no others?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import TypeVar

import pyarrow as pa

from ad_jobs.results.parts import HEATMAPS_FOLDER, SCORES_FOLDER, HeatmapPart, ScorePart, hashed, part_rows, read_shard
from ad_jobs.results.run import RunRecord
from ad_jobs.verifying.progress import watched
from cluster import storage
from cluster.counting import counted

# A store answers many at once, and hashing holds no lock.
THREADS = 8
# Small files are looked at together, so many bytes of them: handing one to a thread costs as much as hashing it.
_TOGETHER_BYTES = 4 << 20

Part = TypeVar("Part", ScorePart, HeatmapPart)
Found = TypeVar("Found")


def check_score_parts(run_uri: str, record: RunRecord) -> list[str]:
    """How the files of the score table differ from those that the record lists."""
    differences = _strays(run_uri, SCORES_FOLDER, [part.name for part in record.parts])
    for wrong in _each(partial(_check_score_part, run_uri), record.parts, "parts of the table hashed"):
        differences += wrong
    return differences


def _check_score_part(run_uri: str, part: ScorePart) -> list[str]:
    try:
        with hashed(storage.join(run_uri, part.name)) as (digest, size, _):
            pass
    except (OSError, storage.StorageError) as error:
        return [f"{part.name}: cannot be read ({error})"]
    if (digest, size) == (part.sha256, part.bytes):
        return []
    return [
        f"{part.name}: sha256 {digest[:12]}…, {counted(size, 'byte')}; run.json has {part.sha256[:12]}…, {part.bytes}"
    ]


def check_footers(run_uri: str, record: RunRecord) -> list[str]:
    """Where the footers of the score table's files count other rows than the record; who reads the rows counts them."""
    differences = []
    for wrong in _each(partial(_check_footer, run_uri), record.parts, "footers read"):
        differences += wrong
    return differences


def _check_footer(run_uri: str, part: ScorePart) -> list[str]:
    try:
        rows = part_rows(storage.join(run_uri, part.name))
    except pa.ArrowException as error:
        return [f"{part.name}: no whole Parquet file ({error})"]
    except (OSError, storage.StorageError) as error:
        return [f"{part.name}: cannot be read ({error})"]
    return [] if rows == part.rows else [f"{part.name}: {counted(rows, 'row')}; run.json has {part.rows}"]


def check_heatmap_parts(run_uri: str, record: RunRecord) -> tuple[dict[str, int], list[str]]:
    """The sum of the `member_mark`s of each whole shard, and how shards differ from those that the record lists."""
    marks: dict[str, int] = {}
    differences = _strays(run_uri, HEATMAPS_FOLDER, [part.name for part in record.heatmap_parts])
    found = _each(partial(_check_heatmap_part, run_uri), record.heatmap_parts, "heatmap shards hashed")
    for part, (mark, wrong) in zip(record.heatmap_parts, found, strict=True):
        differences += wrong
        if mark is not None:
            marks[part.name] = mark
    return marks, differences


def _check_heatmap_part(run_uri: str, part: HeatmapPart) -> tuple[int | None, list[str]]:
    try:
        found = read_shard(run_uri, part.name)
    except (OSError, storage.StorageError) as error:
        return None, [f"{part.name}: cannot be read ({error})"]
    if found is None:
        return None, [f"{part.name}: no whole tar"]
    now, mark = found
    return mark, [] if now == part else [f"{part.name}: {_told(now)}; run.json has {_told(part)}"]


def _each(check: Callable[[Part], Found], parts: Sequence[Part], what: str) -> Iterator[Found]:
    """What `check` finds of each part, in their order, some at a time; meanwhile it is told how many are through."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda group: [check(part) for part in group], _grouped(parts))
        yield from watched(chain.from_iterable(found), len(parts), what)


def _grouped(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Parts that come to _TOGETHER_BYTES, each with those before it that do not."""
    group: list[Part] = []
    held = 0
    for part in parts:
        group.append(part)
        held += part.bytes
        if held >= _TOGETHER_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _told(part: HeatmapPart) -> str:
    return f"sha256 {part.sha256[:12]}…, {counted(part.bytes, 'byte')}, {counted(part.members, 'member')}"


def _strays(run_uri: str, folder: str, listed: list[str]) -> list[str]:
    root = storage.join(run_uri, folder)
    names = storage.list_names(root) if storage.is_folder(root) else []
    # What a killed process was writing is no part of any run.
    found = {f"{folder}/{name}" for name in names if not storage.is_temporary(name)}
    times = Counter(listed)
    twice = [f"{name}: twice in run.json" for name in sorted(times) if times[name] > 1]
    return twice + [f"{name}: not in run.json" for name in sorted(found - set(listed))]
