"""One writer at a time, on disk and on S3: while it lives, when it is killed, and when it was thought dead."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from cluster import storage
from cluster.storage.lease import RENEWED_EVERY_S, Held, Lease, lease

HOLDS = """
import time
from cluster.storage.lease import lease
with lease({uri!r}):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "new" / "run.lock")
    server = request.getfixturevalue("s3")
    return str(server.uri(f"lease/{tmp_path.name}/run.lock"))


def holder(uri: str) -> subprocess.Popen[bytes]:
    """Another process that holds the lease."""
    root = str(Path(__file__).resolve().parents[3])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS.format(uri=uri)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_lease_is_there_while_it_is_held_and_gone_afterwards(uri: str) -> None:
    with lease(uri) as held:
        held.check()
        assert json.loads(storage.read_bytes(uri))["pid"] == os.getpid()
    assert not storage.exists(uri)


def test_a_second_process_is_refused_and_told_who_the_first_is(uri: str) -> None:
    process = holder(uri)
    try:
        with pytest.raises(Held, match=f"held by process {process.pid} on "), lease(uri):
            pass
        assert storage.exists(uri), "a refused process must leave the lease alone"
    finally:
        process.kill()
        process.communicate()


def test_the_lease_of_a_killed_process_is_taken_over_at_once(uri: str) -> None:
    process = holder(uri)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert storage.exists(uri)
    started = time.monotonic()
    with lease(uri) as held:
        held.check()
    assert time.monotonic() - started < RENEWED_EVERY_S, "it watched what it could have seen"


def stranger(**changed: object) -> bytes:
    """What a process on another machine writes."""
    content = {"token": "t", "renewals": 3, "host": "elsewhere", "pid": 7, "started": "1", "machine": "other boot"}
    return json.dumps({**content, **changed}).encode()


def test_a_lease_from_another_machine_is_watched_and_taken_if_nobody_renews_it(uri: str) -> None:
    storage.write_bytes(uri, stranger())
    started = time.monotonic()
    with lease(uri, renewed_every_s=0.1) as held:
        held.check()
    assert time.monotonic() - started > 0.3, "it did not wait for a renewal"


def test_a_lease_from_another_machine_that_is_renewed_is_respected(uri: str) -> None:
    storage.write_bytes(uri, stranger())
    renewal = threading.Timer(0.3, storage.write_bytes, (uri, stranger(renewals=4)))
    renewal.start()
    with pytest.raises(Held, match="held by process 7 on elsewhere"), lease(uri, renewed_every_s=1.0):
        pass
    renewal.join()


def test_another_process_with_the_dead_ones_number_is_not_taken_for_it(uri: str) -> None:
    with lease(uri):
        own = json.loads(storage.read_bytes(uri))
    storage.write_bytes(uri, stranger(machine=own["machine"], pid=os.getppid(), started="0"))
    with lease(uri):
        pass


def test_a_lease_that_was_cut_off_while_it_was_written_is_taken(uri: str) -> None:
    storage.write_bytes(uri, b'{"token": ')
    with lease(uri, renewed_every_s=1.0):
        pass


def test_what_is_no_lease_is_not_taken_for_ever(tmp_path: Path) -> None:
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(Held, match="something that is no lease"), lease(str(tmp_path / "run.lock")):
        pass


@pytest.mark.parametrize("pid", [None, "7", 7.5])
def test_a_lease_without_a_process_is_watched(uri: str, pid: object) -> None:
    with lease(uri):
        own = json.loads(storage.read_bytes(uri))
    storage.write_bytes(uri, json.dumps({**own, "pid": pid}).encode())
    with lease(uri, renewed_every_s=0.1):
        pass


def check_for(held: Lease, seconds: float) -> None:
    """Check the lease again and again, until it is lost or so much time has passed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        held.check()
        time.sleep(0.02)


def test_who_lost_the_lease_learns_it_and_leaves_it_alone(uri: str) -> None:
    with lease(uri, renewed_every_s=0.05) as held:
        storage.write_bytes(uri, stranger())
        with pytest.raises(Held, match="elsewhere"):
            check_for(held, 20.0)
    assert storage.read_bytes(uri) == stranger()


def test_a_lease_is_renewed(uri: str) -> None:
    with lease(uri, renewed_every_s=0.05):
        deadline = time.monotonic() + 20
        while json.loads(storage.read_bytes(uri))["renewals"] < 2:
            assert time.monotonic() < deadline, "it was not renewed"
            time.sleep(0.02)


def test_a_lease_is_taken_over_beside_the_dead_ones_and_nothing_stays(uri: str) -> None:
    dead = dead_here(uri)
    storage.write_bytes(uri, dead)
    storage.write_bytes(f"{uri}.1", dead)
    with lease(uri) as held:
        held.check()
        assert storage.read_bytes(uri) == dead
        assert json.loads(storage.read_bytes(f"{uri}.2"))["pid"] == os.getpid()
        with pytest.raises(Held, match=f"process {os.getpid()} on "), lease(uri):
            pass
    assert storage.beginning_with(uri) == []


def dead_here(uri: str) -> bytes:
    """What a process of this machine that is gone has left."""
    with lease(f"{uri}-of-this-process"):
        own = json.loads(storage.read_bytes(f"{uri}-of-this-process"))
    return json.dumps({**own, "started": "0"}).encode()


def test_who_comes_back_from_a_long_pause_gives_nothing_back_that_is_anothers(uri: str) -> None:
    with lease(uri) as held:
        storage.write_bytes(f"{uri}.1", stranger())
    assert storage.read_bytes(f"{uri}.1") == stranger()
    assert storage.exists(uri)
    with pytest.raises(Held, match="elsewhere"):
        held.check()


def test_a_store_that_cannot_say_who_was_first_is_asked_again_after_a_while(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def plain_write(uri: str, data: bytes) -> bool:
        storage.write_bytes(uri, data)
        return False

    monkeypatch.setattr("cluster.storage.store.create_bytes", plain_write)
    both_may_create = threading.Barrier(2)
    all_tried = threading.Barrier(2)
    won: list[int] = []

    def contend(number: int) -> None:
        both_may_create.wait()
        try:
            with lease(uri, settled_after_s=1.0):
                won.append(number)
                all_tried.wait()
        except Held:
            all_tried.wait()

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert "does not say whether an object was there before: waiting 1 s" in caplog.text


def contend(rounds: int, uri: str, dead: bytes, together: Barrier, won: list[int], number: int) -> None:
    """One of several processes that want the lease of a dead one at the same moment, again and again."""
    for index in range(rounds):
        if number == 0:
            storage.write_bytes(f"{uri}/{index}/run.lock", dead)
        together.wait()
        try:
            with lease(f"{uri}/{index}/run.lock") as held:
                held.check()
                won.append(index)
                # Nobody gives it back before all have asked.
                together.wait()
        except Held:
            together.wait()


def winners(uri: str, rounds: int, processes: int = 4) -> list[int]:
    """The rounds of `contend`, one entry for each process that won."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        # Who dies must not leave the others waiting for ever.
        together, won = context.Barrier(processes, timeout=60.0), manager.list()
        contenders = [
            context.Process(target=contend, args=(rounds, uri, dead_here(uri), together, won, number))
            for number in range(processes)
        ]
        for process in contenders:
            process.start()
        for process in contenders:
            process.join()
        assert [process.exitcode for process in contenders] == [0] * processes
        return sorted(won)


def test_one_of_four_processes_takes_the_lease_of_a_dead_one(uri: str) -> None:
    assert winners(uri, 10) == list(range(10))


@pytest.mark.full
def test_one_of_four_processes_in_each_of_two_hundred_rounds(uri: str) -> None:
    assert winners(uri, 200) == list(range(200))
