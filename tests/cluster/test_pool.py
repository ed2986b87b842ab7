"""A pool of actors that outlives a dataset."""

import gc
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data

from cluster.dataset import SliceSource
from cluster.pool import lasting_pool
from cluster.session import data_context, session


class Marking:
    """Leaves a file for itself where it is made, and says which process it is in."""

    def __init__(self, folder: Path) -> None:
        (folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()

    def __call__(self, rows: pa.Table) -> pa.Table:
        # So long that both actors get some.
        time.sleep(0.1)
        return rows.append_column("process", pa.array([os.getpid()] * rows.num_rows))


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.ray
def test_two_datasets_have_the_same_actors_and_a_killed_one_comes_again(tmp_path: Path) -> None:
    with session(num_cpus=2) as has, data_context(has) as context:
        with lasting_pool(context, 2) as pool:

            def processes() -> set[int]:
                source = SliceSource(pa.table({"id": list(range(24))}), 1)
                read = ray.data.read_datasource(source, override_num_blocks=source.tasks, num_cpus=0.3)
                done = pool.map_batches(
                    read, Marking, fn_constructor_args=(tmp_path,), batch_size=1, batch_format="pyarrow", num_cpus=0.4
                ).take_all()
                assert sorted(row["id"] for row in done) == list(range(24))
                return {row["process"] for row in done}

            first = processes()
            assert len(first) == len(list(tmp_path.iterdir())) == 2
            assert processes() == first
            assert len(list(tmp_path.iterdir())) == 2
            # What the datasets held is gone, as between chapters sooner or later: an actor starts anew without them.
            gc.collect()
            os.kill(min(first), signal.SIGKILL)
            assert processes() & first == {max(first)}
            assert len(list(tmp_path.iterdir())) == 3
        deadline = time.monotonic() + 120
        while alive(max(first)):
            assert time.monotonic() < deadline, "they end with the pool"
            time.sleep(0.1)
