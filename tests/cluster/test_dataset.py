"""What counts as done after an interruption: parts and their ids, in every state of the commit."""

from pathlib import Path

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from cluster.dataset import SliceSource, recover


class Folders:
    """A run's two folders, and ways to put files into them."""

    def __init__(self, root: Path) -> None:
        self.parts, self.commits = root / "scores", root / "checkpoint"
        self.parts.mkdir()
        self.commits.mkdir()

    def part(self, name: str, ids: list[int]) -> None:
        pq.write_table(pa.table({"object_id": pa.array(ids, pa.int64())}), self.parts / f"{name}.parquet")

    def ids(self, name: str, ids: list[int]) -> None:
        pq.write_table(pa.table({"object_id": pa.array(ids, pa.int64())}), self.commits / f"{name}.parquet")

    def recover(self) -> list[int]:
        return recover(str(self.parts), str(self.commits), fs.LocalFileSystem(), "object_id").tolist()

    def files(self) -> list[str]:
        return sorted(f"{p.parent.name}/{p.stem}" for p in [*self.parts.iterdir(), *self.commits.iterdir()])


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    found = Folders(tmp_path)
    found.part("done_000001", [3, 3, 4])  # two frames of one object
    found.ids("done_000001", [3, 4])
    return found


DONE = ["checkpoint/done_000001", "scores/done_000001"]


def test_committed_parts_count(folders: Folders) -> None:
    folders.part("done_000002", [0])
    folders.ids("done_000002", [0])
    assert folders.recover() == [0, 3, 4]


def test_a_part_written_but_not_committed_is_dropped(folders: Folders) -> None:
    folders.ids("half_000001.pending", [7])
    folders.part("half_000001", [7])
    assert folders.recover() == [3, 4]
    assert folders.files() == DONE


def test_a_part_broken_off_while_it_was_written_is_dropped(folders: Folders) -> None:
    folders.ids("half_000001.pending", [7])
    (folders.parts / "half_000001.parquet").write_bytes(b"PAR1 and then nothing")
    assert folders.recover() == [3, 4]
    assert folders.files() == DONE


def test_ids_pending_before_their_part_was_begun_are_dropped(folders: Folders) -> None:
    folders.ids("half_000001.pending", [7])
    assert folders.recover() == [3, 4]
    assert folders.files() == DONE


def test_a_rename_cut_between_copy_and_delete_keeps_the_part(folders: Folders) -> None:
    folders.ids("done_000001.pending", [3, 4])
    assert folders.recover() == [3, 4]
    assert folders.files() == DONE


def test_ids_whose_part_is_gone_are_done_again(folders: Folders) -> None:
    folders.ids("lost_000001", [9])
    assert folders.recover() == [3, 4]
    assert folders.files() == DONE


def test_nothing_yet(tmp_path: Path) -> None:
    assert recover(str(tmp_path / "a"), str(tmp_path / "b"), fs.LocalFileSystem(), "object_id").tolist() == []


def test_slices_cover_the_table_once_and_carry_only_themselves() -> None:
    rows = 10_000
    source = SliceSource(pa.table({"id": np.arange(rows), "text": ["x" * 100] * rows}), 256)
    tasks = source.get_read_tasks(parallelism=1)
    assert len(tasks) == source.tasks == 40
    found = [table for task in tasks for table in task()]
    assert pa.concat_tables(found)["id"].to_pylist() == list(range(rows))
    assert len(cloudpickle.dumps(tasks[0])) < 60_000, "a task that pickles the whole table takes a megabyte"
