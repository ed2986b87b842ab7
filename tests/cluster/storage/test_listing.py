"""One order, whatever the store, in bounded memory."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage.listing import Walk, sort_bounded

NAMES = st.text(st.sampled_from("ab-.0~é𝄞" + "￿"), min_size=1, max_size=3).filter(lambda n: n not in (".", ".."))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=12))
def test_walk_gives_every_file_in_order_of_its_whole_path(
    paths: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("walk")
    made = set()
    for path in paths:
        target = root / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            # A name cannot be a file and a folder.
            continue
        made.add(str(target))
    assert [file.path for file in Walk(str(root))] == sorted(made)


@given(items=st.lists(st.text(max_size=3)), rows=st.integers(1, 8))
def test_sort_bounded_is_sorted(items: list[str], rows: int) -> None:
    assert list(sort_bounded(items, key=str, rows=rows)) == sorted(items)


def test_sort_bounded_merges_spilled_runs_of_many_batches() -> None:
    items = [f"{number:06d}" for number in range(25_000)]
    random.Random(0).shuffle(items)
    assert list(sort_bounded(items, key=str, rows=4_000)) == sorted(items)
