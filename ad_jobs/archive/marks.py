"""Objects of a manifest told by a byte each, by their ids: an id takes eight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PIECE = 1 << 20


def drawn(marked: NDArray[np.bool_], count: int, rng: np.random.Generator) -> list[int]:
    """So many of the ids that are marked, at random, ascending."""
    ranks = np.sort(rng.choice(int(marked.sum()), count, replace=False)) + 1
    # Places of one piece after the other: all of them at once would take eight bytes each.
    found: list[int] = []
    before = 0
    for start in range(0, len(marked), PIECE):
        ends = before + np.cumsum(marked[start : start + PIECE])
        of_piece = ranks[(ranks > before) & (ranks <= ends[-1])]
        found += (start + np.searchsorted(ends, of_piece)).tolist()
        before = int(ends[-1])
    return found


def rows_marked(tables: Iterable[pa.Table], marked: NDArray[np.bool_]) -> Iterator[pa.Table]:
    """Of a manifest's rows, in order and in several tables, those whose ids are marked."""
    start = 0
    for table in tables:
        yield table.filter(pa.array(marked[start : start + table.num_rows]))
        start += table.num_rows


def rows_of(table: pa.Table, ids: NDArray[np.int64]) -> pa.Table:
    """The rows of a table whose `object_id` is among these; both ascend."""
    held = table["object_id"].to_numpy()
    if not len(held):
        return table
    near = ids[np.searchsorted(ids, held[0]) : np.searchsorted(ids, held[-1], side="right")]
    return table.filter(pa.array(np.isin(held, near, assume_unique=True)))
