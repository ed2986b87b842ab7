"""An archive behind a proxy that fails on purpose, and the table of a scan that nothing disturbed."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import scankit as kit
from s3server import S3Server

from ad_jobs.index import index
from ad_jobs.scan import scan
from tests.faults.proxy import FaultProxy

PREFIX = "faults/archive"
OBJECTS = kit.good_objects(110) | {name: data for name, (data, _) in kit.bad_objects().items()}
WAIT_S = 300.0
# Objects, in the scans here: two chapters.
CHAPTER = 80


def statement(source: str, model: str, out: str, **options: object) -> str:
    """A scan in small chapters, as a statement for `scankit.in_a_process`."""
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"scan({source!r}, [{model!r}], {out!r}, batch_size=4, num_cpus=2, chapter_objects={CHAPTER}{given})"


def wait_for(
    condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None, within_s: float = WAIT_S
) -> None:
    """Return once the condition holds; fail if the process ends before, or after `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        if process is not None and process.poll() is not None:
            _, errors = process.communicate()
            pytest.fail(f"the scan ended before: {errors.decode()[-2000:]}")
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def finish(process: subprocess.Popen[bytes], within_s: float = WAIT_S) -> None:
    """Wait for a scan that must succeed."""
    _, errors = process.communicate(timeout=within_s)
    assert process.returncode == 0, errors.decode()[-3000:]


def asked_for(proxy: FaultProxy, since: int = 0) -> Counter[str]:
    """How often each object of the archive, by name, was asked for from the request numbered `since` on."""
    folder = f"archive/{PREFIX}/"
    names = (request.key.removeprefix(folder) for request in proxy.requests[since:] if request.method == "GET")
    return Counter(name for name in names if name in OBJECTS)


@pytest.fixture(scope="module")
def through(s3: S3Server) -> Iterator[FaultProxy]:
    """The proxy; as long as it lives, for the tests of one file, the environment leads to it."""
    proxy = FaultProxy(s3.endpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        try:
            yield proxy
        finally:
            proxy.close()


@pytest.fixture
def proxy(through: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy, which fails in no way until the test says so."""
    yield through
    through.rule = lambda _: None


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model on disk."""
    return kit.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(s3: S3Server) -> str:
    """The archive, as a SOURCE."""
    for name, data in OBJECTS.items():
        s3.put(f"{PREFIX}/{name}", data)
    return s3.uri(PREFIX)


@pytest.fixture(scope="module")
def undisturbed(source: str, model: str, through: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table of a scan without faults, in one chapter: every object was asked for once."""
    out: Path = tmp_path_factory.mktemp("undisturbed") / "run"
    index(source, str(out / "manifest"))
    since = len(through.requests)
    scan(source, [model], str(out), batch_size=4, num_cpus=2)
    gets = asked_for(through, since)
    assert set(gets.values()) == {1}
    assert len(gets) == len(OBJECTS)
    return kit.table(str(out))
