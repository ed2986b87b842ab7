"""What objects take: some of them fetched, decoded, scored and written by the code of a scan, in this process."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.archive.manifest import RowReader
from ad_jobs.images.domain import Taker
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.results.heatmaps import SAMPLE_SHARE, parse_reference
from ad_jobs.scanning.intent import Intent
from ad_jobs.scanning.judgement import ModelUse
from ad_jobs.scanning.stages import MANIFEST_COLUMNS, SCORED_OBJECTS, prepare_objects, score_objects
from ad_jobs.scanning.table import finish_rows
from ad_jobs.scoring.model_store import open_model
from ad_jobs.specs import KeepPolicy

# Objects that pay for imports, for the decoder's start and for the first batch; they count for nothing.
WARM_UP = 4
# Frames at once: fewer than in a scan, so that a sample has several batches, whose times differ.
BATCH = 8
# Of a tar: a member's header, and what its end is filled up to.
_BLOCK = 512

# What is known of each timed object, in this order.
COSTS = ("bytes", "fetch_ms", "decode_ms", "score_ms", "write_ms", "rows", "heatmap_bytes")


class Timed(NamedTuple):
    """What a sample of objects took.

    `costs` is float64 [objects, len(COSTS)]; of heatmaps it has what the scan is expected to keep.
    `fetch_cpu_ms` is the CPU of this process for an object that is fetched and handed over to the decoder.
    `row_bytes` is what one more row adds to the table, `part_bytes` what a part of it has beside its rows.
    `by_code` counts what failed or was skipped although its header says nothing against it.
    """

    costs: NDArray[np.float64]
    fetch_cpu_ms: float
    row_bytes: float
    part_bytes: float
    by_code: dict[str, int]


def time_sample(intent: Intent, ids: NDArray[np.int64], scratch: str) -> Timed:
    """What one or more objects take, ids ascending; heatmaps are written below the local folder `scratch`.

    Raises:
        UsageError: a model that cannot be opened.
        JobError: the store refuses the credentials, or was away for too long.
    """
    rows = RowReader(intent.manifest).rows(ids, MANIFEST_COLUMNS)
    # All heatmaps, to see how large they are; which of them a scan keeps is a matter of shares.
    uses = [use._replace(judgement=use.judgement._replace(heatmaps="all")) for use in intent.uses]
    with GuardedDecoder() as decoder, _one_thread():
        from ad_jobs.scoring.scorer import Scorer

        models = [
            (
                Scorer(
                    open_model(model.uri).detector, tiles=intent.policies[use.policy].tiles, batch_size=BATCH, threads=1
                ),
                use,
            )
            for model, use in zip(intent.models, uses, strict=True)
        ]

        def prepared(some: pa.Table) -> pa.Table:
            takers = [Taker(use.policy, use.domain) for use in uses]
            return prepare_objects(
                some, intent.policies, intent.limits, decoder, Identifiers(), takers, intent.manifest.root
            )

        score_objects(prepared(rows.slice(0, WARM_UP)), intent.policies, models)
        cpu_s = time.process_time()
        ready = prepared(rows)
        cpu_s = time.process_time() - cpu_s
        scored = score_objects(ready, intent.policies, models)
    written = _Written(scored, uses, scratch)
    return Timed(
        np.stack([_costs(row, written, intent.spec.heatmaps) for row in _timed_rows(scored)]),
        1e3 * cpu_s / rows.num_rows,
        *written.sizes(),
        dict(sorted(Counter(written.codes()).items())),
    )


class _TimedRow(TypedDict):
    """What SCORED_OBJECTS tells of an object's times; of `score_ms`, each model's frames."""

    object_id: int
    bytes: int | None
    fetch_ms: float
    decode_ms: float | None
    score_ms: list[list[float]]


def _timed_rows(scored: pa.Table) -> list[_TimedRow]:
    return cast(list[_TimedRow], scored.select(list(_TimedRow.__annotations__)).to_pylist())


@contextmanager
def _one_thread() -> Iterator[None]:
    """A block after which torch has as many threads as before: a scan's actors have one each."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _costs(row: _TimedRow, written: _Written, kept: KeepPolicy) -> list[float]:
    score_ms = sum(ms for of_model in row["score_ms"] for ms in of_model)
    rows, maps, heatmap_bytes = written.of_object(row["object_id"], kept)
    write_ms = written.table_ms + maps * written.heatmap_ms
    return [row["bytes"] or 0, row["fetch_ms"], row["decode_ms"] or 0, score_ms, write_ms, rows, heatmap_bytes]


class _Written:
    """A part of the table with all heatmaps, and how long it takes to make it with and without them."""

    def __init__(self, scored: pa.Table, uses: list[ModelUse], scratch: str) -> None:
        without = [[[None] * len(frames) for frames in models] for models in scored["scores"].to_pylist()]
        place = scored.column_names.index("heatmaps")
        empty = scored.set_column(place, "heatmaps", pa.array(without, SCORED_OBJECTS.field("heatmaps").type))
        _, bare_ms = _made(empty, uses, scratch)
        self._rows, full_ms = _made(scored, uses, scratch)
        maps = len(self._rows) - self._rows["heatmap"].null_count
        # Of an object, and of one more heatmap.
        self.table_ms = bare_ms / scored.num_rows
        self.heatmap_ms = max(0.0, full_ms - bare_ms) / maps if maps else 0.0

    def codes(self) -> Iterator[str]:
        """Why objects have no score, once for each object and code."""
        pairs = self._rows.select(["object_id", "error_code"]).to_pylist()
        yield from (code for _, code in {(row["object_id"], row["error_code"]) for row in pairs} if code is not None)

    def of_object(self, object_id: int, kept: KeepPolicy) -> tuple[int, float, float]:
        """Its rows, and of its heatmaps how many are to be kept, and their bytes in a shard: shares of them count."""
        rows = [row for row in self._rows.select(_KEPT).to_pylist() if row["object_id"] == object_id]
        maps = [(_share(kept, row["flagged"]), row["heatmap"]) for row in rows if row["heatmap"] is not None]
        return len(rows), sum(share for share, _ in maps), sum(share * _in_shard(found) for share, found in maps)

    def sizes(self) -> tuple[float, float]:
        """Bytes of one more row, and of a part beside its rows: by what the second half of this part adds."""
        half, whole = len(self._rows) // 2, len(self._rows)
        smaller, larger = (len(_parquet(self._rows.slice(0, count))) for count in (half, whole))
        a_row = (larger - smaller) / (whole - half)
        return a_row, max(0.0, larger - whole * a_row)


_KEPT = ["object_id", "flagged", "heatmap"]


def _made(scored: pa.Table, uses: list[ModelUse], scratch: str) -> tuple[pa.Table, float]:
    start = time.perf_counter()
    rows = finish_rows(scored, scratch, "", 0, uses)
    _parquet(rows)
    return rows, 1e3 * (time.perf_counter() - start)


def _parquet(rows: pa.Table) -> bytes:
    file = io.BytesIO()
    # As a scan writes its parts.
    pq.write_table(rows, file, compression="zstd")
    return file.getvalue()


def _share(kept: KeepPolicy, flagged: bool) -> float:
    """How likely a scan keeps a heatmap."""
    if kept == "flagged":
        return 1.0 if flagged else SAMPLE_SHARE
    return float(kept == "all")


def _in_shard(reference: str) -> int:
    length = parse_reference(reference).length
    return _BLOCK + length + -length % _BLOCK
