"""The files a run consists of, described as they lie in storage: rows, members, bytes and sha256.

A part belongs to a chapter of the run (see `ad_jobs.scanning.chapters`) and is named by what it holds, so that a task
that is run again overwrites its own: `part-CHAPTER-HASH`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from ad_jobs.results.members import Members
from cluster import storage

SCORES_FOLDER = "scores"
HEATMAPS_FOLDER = "heatmaps"
# Several are read at once; each is a request to a store.
CHUNK_BYTES = 4 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScorePart(_Part):
    """One Parquet file of the score table."""

    # Relative to the run.
    name: str
    rows: int = Field(ge=0)
    sha256: str
    bytes: int = Field(ge=0)


class HeatmapPart(_Part):
    """One tar of heatmaps."""

    # Relative to the run.
    name: str
    bytes: int = Field(ge=0)
    sha256: str
    members: int = Field(ge=0)


def chapter_prefix(chapter: int) -> str:
    """What the names of a chapter's parts begin with."""
    return f"part-{chapter:05d}-"


def part_name(chapter: int, held: Iterable[str]) -> str:
    """A part's name without folder and ending, from what it holds, in any order."""
    joined = "\n".join(sorted(held)).encode()
    return chapter_prefix(chapter) + hashlib.sha256(joined).hexdigest()[:16]


def describe_parts(run_uri: str, prefix: str = "") -> list[ScorePart]:
    """The Parquet files of the score table as they lie in storage, by name, each with its rows and sha256.

    `prefix`: of the names of the files that are wanted; all by default, here and below.
    """
    found = []
    for name, uri in _files(run_uri, SCORES_FOLDER, prefix, ".parquet"):
        with hashed(uri) as (digest, size, file):
            found.append(ScorePart(name=name, rows=rows_of(file), sha256=digest, bytes=size))
    return found


def describe_heatmap_part(run_uri: str, name: str) -> HeatmapPart | None:
    """A heatmap shard as it lies in storage, its members counted; None if it is not a whole tar."""
    found = read_shard(run_uri, name)
    return None if found is None else found[0]


def read_shard(run_uri: str, name: str) -> tuple[HeatmapPart, int] | None:
    """A heatmap shard as it lies in storage, and the sum of its `member_mark`s; None if it is not a whole tar."""
    sha256, size, members = hashlib.sha256(), 0, Members()
    filesystem, path = storage.filesystem(storage.join(run_uri, name))
    with filesystem.open_input_file(path) as file:
        try:
            # What follows the end of the archive belongs to the digest, too.
            for chunk in _chunks(file):
                sha256.update(chunk)
                size += len(chunk)
                members.take(memoryview(chunk))
        except ValueError:
            return None
    if not members.whole:
        return None
    return HeatmapPart(name=name, bytes=size, sha256=sha256.hexdigest(), members=members.count), members.marks


def part_uris(run_uri: str, prefix: str = "") -> list[str]:
    """URIs of the score table's Parquet files as they lie in storage, by name."""
    return [uri for _, uri in _files(run_uri, SCORES_FOLDER, prefix, ".parquet")]


def heatmap_part_uris(run_uri: str, prefix: str = "") -> list[str]:
    """URIs of the heatmap shards as they lie in storage, by name."""
    return [uri for _, uri in _files(run_uri, HEATMAPS_FOLDER, prefix, ".tar")]


def part_rows(uri: str) -> int:
    """The row count in a Parquet file's footer."""
    filesystem, path = storage.filesystem(uri)
    with filesystem.open_input_file(path) as file:
        return rows_of(file)


def rows_of(file: pa.NativeFile) -> int:
    """The row count in the footer of an open Parquet file; raises ArrowException where it is none."""
    return int(pq.ParquetFile(file).metadata.num_rows)


class RowGroup(NamedTuple):
    """Rows of a Parquet file of the score table that lie together, or all of them, and what ids they may have."""

    uri: str
    number: int | None = None
    least: int = -(1 << 63)
    greatest: int = (1 << 63) - 1

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """These columns of them, so many rows at a time."""
        filesystem, path = storage.filesystem(self.uri)
        with filesystem.open_input_file(path) as file:
            groups = None if self.number is None else [self.number]
            yield from pq.ParquetFile(file).iter_batches(rows, row_groups=groups, columns=list(columns))


def row_groups(uri: str) -> list[RowGroup]:
    """Those of a file, from its footer."""
    filesystem, path = storage.filesystem(uri)
    with filesystem.open_input_file(path) as file:
        metadata = pq.ParquetFile(file).metadata
    column = metadata.schema.to_arrow_schema().get_field_index("object_id")
    found = []
    for number in range(metadata.num_row_groups):
        ids = metadata.row_group(number).column(column).statistics
        known = ids is not None and ids.has_min_max
        found.append(RowGroup(uri, number, ids.min, ids.max) if known else RowGroup(uri, number))
    return found


@contextmanager
def hashed(uri: str) -> Iterator[tuple[str, int, pa.NativeFile]]:
    """Hex digest (sha256) and size in bytes of an object, and itself, for its footer: most are fetched once."""
    filesystem, path = storage.filesystem(uri)
    with filesystem.open_input_file(path) as file:
        sha256, size, chunk = hashlib.sha256(), 0, pa.py_buffer(b"")
        for chunk in _chunks(file):
            sha256.update(chunk)
            size += len(chunk)
        yield sha256.hexdigest(), size, pa.BufferReader(chunk) if size == len(chunk) else file


def _chunks(file: pa.NativeFile) -> Iterator[pa.Buffer]:
    """A file's bytes from its beginning, CHUNK_BYTES at a time, and what is left at last."""
    while chunk := file.read_buffer(CHUNK_BYTES):
        yield chunk
        if len(chunk) < CHUNK_BYTES:
            # It ended: a store is not asked again to say so.
            return


def _files(run_uri: str, folder: str, prefix: str, suffix: str) -> Iterator[tuple[str, str]]:
    root = storage.join(run_uri, folder)
    try:
        names = sorted(storage.list_names(root))
    except storage.NotFound:
        return
    for name in names:
        if name.startswith(prefix) and name.endswith(suffix):
            yield f"{folder}/{name}", storage.join(root, name)
