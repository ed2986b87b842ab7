"""What a session sees and lends, and that it leaves nothing behind."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from cluster.division import GIB
from cluster.errors import ClusterError
from cluster.session import MIB, object_store_bytes, session


@pytest.mark.parametrize(("memory", "expected"), [(256 * MIB, 128 * MIB), (4 * GIB, GIB), (512 * GIB, 2 * GIB)])
def test_the_object_store_is_a_bounded_part_of_memory(memory: int, expected: int) -> None:
    assert object_store_bytes(memory) == expected


@pytest.mark.parametrize("named", ["argument", "environment"])
def test_rays_client_is_refused_with_the_way_that_works(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001" if named == "environment" else "")
    with (
        pytest.raises(ClusterError, match=r"Got: ray://head:10001.*retroscan submit --address http://HEAD:8265"),
        session("ray://head:10001" if named == "argument" else None),
    ):
        pass


def test_an_address_where_nothing_answers_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_GCS_RPC_TIMEOUT_SECONDS", "1")
    before = dict(os.environ)
    with pytest.raises(ClusterError, match=r"not an address"), session("not an address"):
        pytest.fail("nothing listens there")
    assert dict(os.environ) == before
    assert not ray.is_initialized()


def test_a_head_that_takes_connections_and_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.session.ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        told = rf"No Ray answers at the address. Got: {address} \(TimeoutError: no answer within 0.5 s\)\. Check --addr"
        with pytest.raises(ClusterError, match=told), session(address):
            pytest.fail("nobody answers there")


def test_an_embedded_ray_that_does_not_start_says_nothing_of_addresses_given(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def slow(**_: object) -> None:
        begun.append(1)
        # As Ray does.
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(ClusterError) as told, session():
        pytest.fail("it did not start")
    assert len(begun) == 3
    assert str(told.value).startswith("Ray did not start on this machine. Got: Exception: The current node timed out")
    assert "at a load of" in str(told.value)
    assert "Check" not in str(told.value)


@ray.remote(num_cpus=1)
def _in_a_worker() -> tuple[str, str, str]:
    import cluster.session

    return (os.environ["AWS_REGION"], str(Path(cluster.session.__file__).parent), os.environ["RAY_USAGE_STATS_ENABLED"])


@pytest.mark.ray
def test_workers_see_the_environment_and_the_packages_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-test-1")
    before = dict(os.environ)
    with session(num_cpus=2) as outer:
        scratch = Path(ray._private.worker._global_node.get_temp_dir_path())
        assert stat.S_IMODE(scratch.parent.stat().st_mode) == 0o700
        assert outer.cpus == 2
        (node,) = outer.nodes
        assert node.memory > 0
        assert node.object_store > 0
        region, where, usage = ray.get(_in_a_worker.remote())
        assert (region, usage) == ("eu-test-1", "0")
        assert where == str(Path(__file__).resolve().parents[2] / "cluster")
        with session(num_cpus=64) as inner:
            assert inner.cpus == 2, "a session inside another is the same one"
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert dict(os.environ) == before
    assert not scratch.parent.exists()


@ray.remote(num_cpus=1)
def _alive() -> bool:
    return True


@pytest.mark.ray
def test_an_embedded_ray_listens_on_this_machine_alone() -> None:
    # Servers of other tests.
    before = psutil.Process().children(recursive=True)
    with session(num_cpus=1):
        assert ray.get(_alive.remote())
        family = [process for process in psutil.Process().children(recursive=True) if process not in before]
        listening = [
            (process.name(), connection.laddr)
            for process in family
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert listening
    assert not [found for found in listening if not found[1].ip.removeprefix("::ffff:").startswith("127.")]


@pytest.mark.ray
def test_no_token_is_left_where_others_may_read_it(tmp_path: Path) -> None:
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    subprocess.run(
        [sys.executable, "-c", "from cluster.session import session\nwith session(num_cpus=1): pass"],
        env={**without, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
    )
    assert not list(tmp_path.rglob("auth_token"))


LISTENED = """
import sys
import ray
from cluster.session import session
with session(num_cpus=1):
    @ray.remote(max_retries=1)
    def dies():
        import os
        os._exit(1)
    try:
        ray.get(dies.remote())
    except ray.exceptions.WorkerCrashedError:
        print("it crashed")
print("and said so", file=sys.stderr)
"""


@pytest.mark.ray
@pytest.mark.parametrize("asked", [False, True])
def test_rays_own_lines_reach_those_who_asked_for_them(asked: bool) -> None:
    without = {name: value for name, value in os.environ.items() if name != "RAY_BACKEND_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", LISTENED],
        env={**without, **({"RAY_BACKEND_LOG_LEVEL": "info"} if asked else {})},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    if asked:
        assert "Set ray log level from environment variable" in done.stderr
    else:
        assert done.stdout == "it crashed\n"
        assert done.stderr == "and said so\n"
