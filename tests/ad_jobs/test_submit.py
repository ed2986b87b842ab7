"""`retroscan submit` and `jobs`: what is refused before anything is sent, and what a real cluster then does with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import scankit as kit
from rayhead import RayHead
from s3server import S3Server
from typer.main import get_command
from typer.testing import CliRunner, Result

from ad_jobs import submit
from ad_jobs.cli.app import app
from ad_jobs.cli.show_cluster import jobs_text
from ad_jobs.errors import UsageError
from cluster.jobs import Job

VERBS: Any = get_command(app).commands  # type: ignore[attr-defined]
WAIT_S = 300.0
NOWHERE = "http://127.0.0.1:1"


def parse(*words: str, here: bool = True) -> submit.Request:
    return submit.parse(VERBS, words, here=here)


def refused(result: Result, *words: str) -> None:
    """Exit 2 with one message that holds the words."""
    assert result.exit_code == 2, result.output + str(result.exception)
    for word in words:
        assert word in result.output, result.output


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_words_of_a_job_mean_what_those_of_the_caller_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse(
        "scan",
        "archive",
        "--model",
        "s3://m/1",
        "--model=m 2",
        "--out",
        "/runs/r",
        "--heatmaps",
        "all",
        "--json",
        "--where",
        "rows > 5",
    )
    assert found.verb == "scan"
    assert set(found.words[:-2]) == {
        "--model=s3://m/1",
        f"--model={tmp_path}/m 2",
        "--out=/runs/r",
        "--heatmaps=all",
        "--json",
        "--where=rows > 5",
        "--address=auto",
    }
    assert found.words[-2:] == ("--", f"{tmp_path}/archive")
    assert set(found.places) == {f"{tmp_path}/archive", "s3://m/1", f"{tmp_path}/m 2", "/runs/r"}
    # The verb itself understands them so, and reads no other request out of them.
    assert parse(found.verb, *found.words) == found
    assert "--labels=reviews" in parse("evaluate", "/r", "--labels", "reviews").words
    since = parse("scan", "/a", "--model", "/m", "--out", "/r", "--since", "run-1", "--retry", "failed")
    assert f"--since={tmp_path}/run-1" in since.words
    assert parse("compare", "run-1", "/run-2").words == ("--", f"{tmp_path}/run-1", "/run-2")


def test_only_verbs_that_run_on_ray_are_given_an_address() -> None:
    assert "--address=auto" not in parse("report", "/run").words
    exported = parse("export-model", "/m", "--out", "s3://b/m.onnx")
    assert (exported.words, exported.places) == (("--out=s3://b/m.onnx", "--", "/m"), ("/m", "s3://b/m.onnx"))
    fused = parse("fuse", "s3://m/1", "s3://m/2", "--out", "s3://m/f", "--normal", "s3://n")
    assert fused.words == ("--out=s3://m/f", "--normal=s3://n", "--", "s3://m/1", "s3://m/2")
    assert set(fused.places) == {"s3://m/1", "s3://m/2", "s3://m/f", "s3://n"}
    # Which reads headers there.
    assert "--address=auto" in parse("index", "/a", "--out", "/m").words
    assert "--address=auto" in parse("fit", "--detector", "fyd", "--normal", "/n", "--out", "/m").words


def test_a_config_file_stays_here_and_its_options_go(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("model: [/m]\nmax-failed: 0.25\nheatmaps: none\n")
    words = parse("scan", "/a", "--config", str(config), "--out", "/r", "--heatmaps", "all").words
    assert {"--model=/m", "--max-failed=0.25", "--heatmaps=all", "--out=/r"} < set(words)
    assert not [word for word in words if "config" in word]


def test_a_place_that_only_this_machine_has(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a store that other tests use.
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"another machine\. Got: archive for index\. Name an s3://"):
        parse("index", "archive", "--out", "s3://b/m", here=False)
    request = parse("index", "/mnt/archive", "--out", "s3://b/m", here=False)
    submit._warn(request, [], here=False)
    assert "/mnt/archive must exist on every node" in caplog.text
    caplog.clear()
    submit._warn(request, [], here=True)
    submit._warn(parse("index", "s3://b/a", "--out", "s3://b/m", here=False), [], here=False)
    assert not caplog.text


def test_an_endpoint_that_is_not_sent_is_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    request = parse("index", "s3://b/a", "--out", "s3://b/m")
    submit._warn(request, ["AWS_ENDPOINT_URL"], here=True)
    submit._warn(parse("index", "/a", "--out", "/m"), [], here=True)
    assert not caplog.text
    submit._warn(request, [], here=True)
    assert "--env AWS_ENDPOINT_URL" in caplog.text


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("http://127.0.0.1:8265", True),
        ("localhost:8265", True),
        ("auto", True),
        (None, True),
        ("http://head.example:8265", False),
        ("10.0.0.7:6379", False),
    ],
)
def test_which_addresses_are_of_this_machine(address: str | None, here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert submit.on_this_machine(address) is here
    monkeypatch.setenv("RAY_ADDRESS", "http://head.example:8265")
    assert submit.on_this_machine(None) is False


def test_requests_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSET_HERE", raising=False)
    monkeypatch.setenv("SET_HERE", "very-secret")
    to = ("submit", "--address", NOWHERE)
    refused(run(*to), "takes a verb", "scan")
    refused(run(*to, "--", "scna", "/a"), "'scna'", "scan")
    refused(run(*to, "--", "submit", "--", "index", "/a"), "'submit'")
    refused(run(*to, "--", "jobs"), "'jobs'")
    refused(run(*to, "--", "index", "/a"), "--out")
    refused(run(*to, "--", "index", "/a", "--out", "/m", "--haeders"), "--haeders")
    refused(run(*to, "--", "scan", "/a", "--model", "/m", "--out", "/r", "--address", "x:1"), "--address x:1", "submit")
    refused(run("submit", "--address", "http://head.example:8265", "index", "a", "--out", "/m"), "a for index")
    index = ("--", "index", "/a", "--out", "/m")
    refused(run(*to, "--env", "UNSET_HERE", *index), "UNSET_HERE", "Export")
    refused(run(*to, "--submission-id", "a/b", *index), "'a/b'")
    result = run(*to, "--env", "SET_HERE=very-secret", *index)
    refused(result, "SET_HERE=...", "--env NAME")
    assert "very-secret" not in result.output


def test_no_cluster_is_an_error_with_what_to_do() -> None:
    result = run("submit", "--address", NOWHERE, "--", "index", "/a", "--out", "/m")
    assert result.exit_code == 1
    assert f"No Ray cluster answers. Got: address {NOWHERE}" in result.output
    assert "http://HEAD:8265" in result.output
    assert run("jobs", "--address", NOWHERE).exit_code == 1


def test_help_of_a_verb_to_submit() -> None:
    result = run("submit", "--", "index", "--help")
    assert result.exit_code == 0
    assert "--headers" in result.output


def _job(status: str, exit_code: int | None, message: str = "") -> Job:
    started = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    return Job(
        "retroscan-scan-1", status, "python -m ad_jobs scan", {"verb": "scan"}, started, None, exit_code, message
    )


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 3),
        ("FAILED", None, 1),
        ("FAILED", -9, 137),
        ("STOPPED", None, 1),
        ("RUNNING", None, 0),
    ],
)
def test_the_exit_code_of_a_job(status: str, code: int | None, expected: int) -> None:
    assert submit.exit_code(_job(status, code)) == expected


def test_jobs_as_lines() -> None:
    text = jobs_text([submit.as_json(_job("FAILED", 2, "last logs:\nsomething\nretroscan: It broke.\n"))])
    heading, line = text.splitlines()
    assert heading.split()[:3] == ["id", "status", "verb"]
    assert line.split() == [
        "retroscan-scan-1",
        "FAILED",
        "scan",
        "2026-05-04",
        "03:02:01",
        "-",
        "2",
        "retroscan:",
        "It",
        "broke.",
    ]


Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def call(ray_head: RayHead) -> Call:
    """Run a verb in a process of its own, for the head."""

    def run_verb(verb: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(ray_head, verb, *arguments),
            env={**ray_environment(ray_head), **environment},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    return run_verb


def command(head: RayHead, verb: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "ad_jobs", verb, "--address", head.address, *map(str, arguments)]


def ray_environment(head: RayHead) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "RAY_AUTH_TOKEN_PATH": head.env["RAY_AUTH_TOKEN_PATH"], "PYTHONPATH": root}


@pytest.mark.ray
def test_a_verb_runs_once_and_is_followed_to_its_end(call: Call, tmp_path: Path) -> None:
    source = kit.write_archive(tmp_path / "archive", {"one.png": kit.png(1), "two.png": kit.png(2)})
    index = ("--", "index", source, "--out", tmp_path / "manifest")

    detached = call("submit", "--detach", *index)
    assert detached.returncode == 0, detached.stderr
    job_id = detached.stdout.strip()
    assert job_id.startswith("retroscan-index-")

    followed = call("submit", "--json", *index)
    assert followed.returncode == 0, followed.stderr
    found = json.loads(followed.stdout)
    assert (found["id"], found["status"], found["exit_code"], found["submitted"]) == (job_id, "SUCCEEDED", 0, False)
    assert "2 objects in" in followed.stderr
    assert (tmp_path / "manifest" / "manifest.json").exists()

    listed = json.loads(call("jobs", "--json").stdout)
    (job,) = (job for job in listed if job["id"].startswith(job_id))
    assert (job["verb"], job["exit_code"]) == ("index", 0)
    assert job_id in call("jobs").stdout


@pytest.mark.ray
def test_a_job_that_fails_gives_its_exit_code_and_is_tried_again(call: Call, tmp_path: Path) -> None:
    index = ("--", "index", tmp_path / "gone", "--out", tmp_path / "manifest")
    failed = call("submit", "--submission-id", "gone", *index)
    assert failed.returncode == 2
    assert failed.stdout == "job gone failed, exit code 2\n"
    assert str(tmp_path / "gone") in failed.stderr
    again = call("submit", "--submission-id", "gone", "--detach", *index)
    assert again.stdout == "gone-2\n"


@pytest.mark.ray
def test_a_wrong_token_and_none(call: Call, tmp_path: Path) -> None:
    index = ("--", "index", "/a", "--out", tmp_path / "m")
    for verb, arguments in (("submit", index), ("jobs", ())):
        wrong = call(verb, *arguments, RAY_AUTH_TOKEN="0123456789")
        assert wrong.returncode == 1
        assert "Invalid authentication token" in wrong.stderr
        assert "RAY_AUTH_TOKEN_PATH" in wrong.stderr
        assert "0123456789" not in wrong.stderr
    assert "Missing authentication token" in call("jobs", RAY_AUTH_TOKEN_PATH="").stderr


@pytest.mark.ray
@pytest.mark.s3
def test_keys_that_are_sent_open_the_store_and_are_shown_nowhere(call: Call, ray_head: RayHead, s3: S3Server) -> None:
    s3.put("submit/one.png", kit.png(1))
    names = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    options = [word for name in names for word in ("--env", name)]
    done = call("submit", *options, "--json", "--", "index", s3.uri("submit"), "--out", s3.uri("submit-manifest"))
    assert done.returncode == 0, done.stderr
    assert f"1 object in {s3.uri('submit-manifest')}" in done.stderr
    listed = call("jobs", "--json").stdout
    assert json.loads(done.stdout)["id"] in listed
    for name in names[2:]:
        value = s3.env[name]
        assert value not in done.stdout + done.stderr + listed
        assert not [
            path for path in ray_head.folder.rglob("*") if path.is_file() and value.encode() in path.read_bytes()
        ]


@pytest.mark.ray
def test_a_job_finds_the_cluster_that_it_runs_on(call: Call, ray_head: RayHead) -> None:
    done = call("submit", "--", "doctor")
    assert done.returncode == 0, done.stderr
    assert f"ok       Ray cluster: {ray_head.address} answers with Ray" in done.stderr


@pytest.fixture
def silent_store() -> Iterator[dict[str, str]]:
    """Variables that lead to a store that never answers: whoever asks it waits for minutes."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listening.getsockname()[1]}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
        }


@pytest.mark.ray
def test_an_interrupt_leaves_the_job_running(
    call: Call, ray_head: RayHead, silent_store: dict[str, str], tmp_path: Path
) -> None:
    options = [word for name in silent_store for word in ("--env", name)]
    index = ("--", "index", "s3://bucket/archive", "--out", tmp_path / "manifest")
    following = subprocess.Popen(
        command(ray_head, "submit", "--submission-id", "waiting", *options, *index),
        env={**ray_environment(ray_head), **silent_store},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stderr is not None
    until = time.monotonic() + WAIT_S
    while "Running entrypoint" not in (line := following.stderr.readline()):
        assert following.poll() is None, line
        assert time.monotonic() < until
    following.send_signal(signal.SIGINT)
    stdout, stderr = following.communicate(timeout=WAIT_S)
    assert following.returncode == 130, stderr
    assert stdout == ""
    assert "Job waiting goes on" in stderr
    assert "retroscan jobs --stop waiting" in stderr

    assert _status(call, "waiting") == "RUNNING"
    stopped = call("jobs", "--stop", "waiting")
    assert stopped.stdout == "job waiting is being stopped\n", stopped.stderr
    while (status := _status(call, "waiting")) == "RUNNING":
        assert time.monotonic() < until
    assert status == "STOPPED"
    gone = call("jobs", "--stop", "never-submitted")
    assert gone.returncode == 1
    assert "does not exist" in gone.stderr


def _status(call: Call, job_id: str) -> str:
    jobs = {job["id"]: job["status"] for job in json.loads(call("jobs", "--json").stdout)}
    return str(jobs[job_id])
