"""Rows of a manifest by their ids, from several parts with several row groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_jobs.archive.listing import write_manifest
from ad_jobs.archive.manifest import RowReader
from ad_jobs.archive.manifest_record import ManifestInfo, find_manifest
from ad_jobs.errors import RetroscanError

OBJECTS = 23


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ManifestInfo:
    """A manifest of 23 objects in parts of 6, row groups of 3."""
    home = tmp_path_factory.mktemp("rows")
    (home / "archive").mkdir()
    for number in range(OBJECTS):
        (home / "archive" / f"{number:03d}.png").write_bytes(b"x" * (number + 1))
    write_manifest(str(home / "archive"), str(home / "manifest"), part_rows=6, batch_rows=3)
    found = find_manifest(str(home / "manifest"))
    assert found is not None
    assert len(found.parts) > 2
    return found


@given(st.sets(st.integers(0, OBJECTS - 1), min_size=1))
@settings(max_examples=60, deadline=None)
def test_rows_are_those_of_the_ids_in_their_order(info: ManifestInfo, wanted: set[int]) -> None:
    ids = np.array(sorted(wanted))
    table = RowReader(info).rows(ids, ["bytes", "object_id"])
    assert table.column_names == ["bytes", "object_id"]
    assert table["object_id"].to_pylist() == ids.tolist()
    assert table["bytes"].to_pylist() == (ids + 1).tolist()


def test_one_reader_goes_back_and_forth(info: ManifestInfo) -> None:
    reader = RowReader(info)
    for number in (0, 22, 5, 6, 0):
        assert reader.rows(np.array([number]), ["object_id"])["object_id"].to_pylist() == [number]


def test_a_damaged_part_is_told(info: ManifestInfo) -> None:
    part = Path(info.uri.removeprefix("file://")) / info.parts[1].name
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        # Of another part.
        assert RowReader(info).rows(np.array([0]), ["object_id"]).num_rows == 1
        with pytest.raises(RetroscanError, match=part.name):
            RowReader(info).rows(np.array([7]), ["object_id"])
    finally:
        part.write_bytes(content)
