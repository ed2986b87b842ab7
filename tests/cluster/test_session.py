"""How a cluster is divided, and what a session leaves behind."""

import os
import pickle
from pathlib import Path

import psutil
import pytest
import ray

from cluster.errors import ClusterError
from cluster.session import GIB, MIB, for_objects, object_store_bytes, plan, session


@pytest.mark.parametrize("gpus", [0, 1, 4])
@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 7, 8, 16, 96, 1000])
def test_actors_leave_cpus_for_reading_and_writing(cpus: int, gpus: int) -> None:
    found = plan(cpus, gpus, 64 * GIB)
    left = cpus - found.actors * found.actor_cpus
    assert left >= found.fetch_cpus + found.write_cpus - 1e-6, "a full actor pool starves the reader"
    assert found.actors >= 1
    assert found.actor_threads >= 1


@pytest.mark.parametrize(("cpus", "gpus"), [(1, 0), (2, 0), (4, 0), (16, 0), (8, 1), (2, 2)])
def test_no_two_stages_ask_for_the_same(cpus: int, gpus: int) -> None:
    found = plan(cpus, gpus)
    asked = {(found.fetch_cpus, 0.0), (found.write_cpus, 0.0), (found.actor_cpus, found.actor_gpus)}
    assert len(asked) == 3, "stages of equal resources are fused, and do not overlap"


def test_two_cpus_hold_two_actors_of_one_thread() -> None:
    found = plan(2)
    assert (found.actors, found.actor_cpus, found.actor_threads) == (2, 0.5, 1)


def test_actors_fit_into_memory() -> None:
    assert plan(16, memory=3 * GIB).actors == 3
    assert plan(16, memory=GIB // 2).actors == 1


def test_few_objects_are_worth_few_actors() -> None:
    found = plan(8, memory=64 * GIB)._replace(batch_size=10)
    assert [for_objects(found, objects).actors for objects in (0, 1, 320, 321, 960, 10_000)] == [
        1,
        1,
        1,
        2,
        3,
        8,
    ]
    assert for_objects(plan(8, 2), 10**6).actors == 2


def test_one_actor_for_each_gpu() -> None:
    found = plan(16, 4, 64 * GIB)
    assert (found.actors, found.actor_gpus) == (4, 1.0)


def test_blocks_are_whole_batches_and_small_memory_makes_small_batches() -> None:
    assert plan(8).block_rows % plan(8).batch_size == 0
    assert plan(8, memory=2 * GIB).batch_size < plan(8, memory=64 * GIB).batch_size


def test_a_cluster_without_cpus_is_refused() -> None:
    with pytest.raises(ClusterError, match="at least one CPU"):
        plan(0)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(ClusterError("no answer", "look")))
    assert (error.problem, error.remedy, str(error)) == ("no answer", "look", "no answer look")


@pytest.mark.parametrize(
    ("memory", "expected"), [(256 * MIB, 128 * MIB), (4 * GIB, GIB), (512 * GIB, 2 * GIB)]
)
def test_the_object_store_is_a_bounded_part_of_memory(memory: int, expected: int) -> None:
    assert object_store_bytes(memory) == expected


def test_an_address_where_nothing_answers_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_GCS_RPC_TIMEOUT_SECONDS", "1")
    before = dict(os.environ)
    with pytest.raises(ClusterError, match=r"not an address"), session("not an address"):
        pytest.fail("nothing listens there")
    assert dict(os.environ) == before
    assert not ray.is_initialized()


@ray.remote(num_cpus=1)
def _in_a_worker() -> tuple[str, str, str]:
    import cluster.session

    return (
        os.environ["AWS_REGION"],
        str(Path(cluster.session.__file__).parent),
        os.environ["RAY_USAGE_STATS_ENABLED"],
    )


@pytest.mark.ray
def test_workers_see_the_environment_and_the_packages_and_nothing_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-test-1")
    before = dict(os.environ)
    folders = set(Path("/tmp").glob("rs-*"))
    with session(num_cpus=2) as outer:
        assert outer.cpus == 2
        region, where, usage = ray.get(_in_a_worker.remote())
        assert (region, usage) == ("eu-test-1", "0")
        assert where == str(Path(__file__).resolve().parents[2] / "cluster")
        with session(num_cpus=64) as inner:
            assert inner.cpus == 2, "a session inside another is the same one"
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert dict(os.environ) == before
    assert not {
        folder for folder in set(Path("/tmp").glob("rs-*")) - folders if (folder / "session_latest").exists()
    }


@ray.remote(num_cpus=1)
def _alive() -> bool:
    return True


@pytest.mark.ray
def test_an_embedded_ray_listens_on_this_machine_alone() -> None:
    with session(num_cpus=1):
        assert ray.get(_alive.remote())
        family = psutil.Process().children(recursive=True)
        listening = [
            (process.name(), connection.laddr)
            for process in family
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert listening
    assert not [found for found in listening if not found[1].ip.removeprefix("::ffff:").startswith("127.")]
