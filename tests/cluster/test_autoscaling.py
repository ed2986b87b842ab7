"""A cluster that starts with nothing, and what a session waits for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import autoscaling
from cluster.autoscaling import Size
from cluster.errors import ClusterError


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [(None, None, Size(0, 0)), ("64", "4", Size(64, 4)), ("8", None, Size(8, 0)), (" 8 ", "", Size(8, 0))],
)
def test_the_deployment_asks_by_the_environment(
    cpus: str | None, gpus: str | None, expected: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ((autoscaling.CPUS, cpus), (autoscaling.GPUS, gpus)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert autoscaling.asked() == expected


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "²"])
def test_what_is_no_count_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(autoscaling.GPUS, text)
    with pytest.raises(ClusterError, match="RETROSCAN_CLUSTER_GPUS is a whole number"):
        autoscaling.asked()


@pytest.mark.ray
def test_a_cluster_grows_from_nothing_to_what_is_asked_for() -> None:
    script = Path(__file__).with_name("grow_from_zero.py")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["unasked"] == [0, 0]
    assert "must grow to 1 CPU and 0 GPUs. Got: 0 CPUs" in said["impatient"]
    assert said["grown"] == [3, 1]
    assert said["actors"] == 1
    assert said["short"] == [3, 1], "fewer than asked for, but some of each, go on"
