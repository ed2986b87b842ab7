"""Reading judged heatmaps: neighbours together, and the same heatmaps however they are read."""

import pytest

from ad_jobs.evaluation.heatmaps import JudgedHeatmap, batches
from ad_jobs.results.heatmaps import Reference


def at(shard: str, offset: int, length: int = 100) -> JudgedHeatmap:
    return JudgedHeatmap(Reference(shard, offset, length), "image a", None)


NEIGHBOURS = [at("a", offset) for offset in range(0, 1000, 100)]


@pytest.mark.parametrize(("read_bytes", "expected"), [(1, [1] * 10), (300, [3, 3, 3, 1]), (1000, [10])])
def test_neighbours_are_read_together_up_to_a_size(read_bytes, expected):
    found = list(batches(NEIGHBOURS, read_bytes=read_bytes))
    assert [len(batch) for batch in found] == expected
    assert [heatmap for batch in found for heatmap in batch] == NEIGHBOURS


def test_a_gap_and_another_shard_are_read_apart():
    far = [at("a", 0), at("a", 150), at("a", 500), at("b", 600)]
    assert [len(batch) for batch in batches(far, gap_bytes=50)] == [2, 1, 1]
    assert [len(batch) for batch in batches(far, gap_bytes=400)] == [3, 1]
