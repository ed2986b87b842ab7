"""ray_config.yaml, and whether a slip in it is seen before a machine is paid for.

Three judges:
Ray's own offline validation of a launcher file;
botocore's model of EC2, for what Ray passes on unread;
what this project promises of its clusters (a head without work, a token on every node, pinned versions, no keys).
"""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from cluster import autoscaling
from cluster.session import IDLE_WORKER, IDLE_WORKER_MS
from tests.cluster import needed

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "ray_config.yaml"
TEXT = FILE.read_text()

PROVIDER_KEYS = {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips"}
# What a user must put in: names that exist nowhere, and what differs from account to account.
PLACEHOLDER = re.compile(
    r"-0{17}\b|\b0{40}\b|example\.org|region:|availability_zone:|InstanceType:|Name: retroscan-|RETROSCAN_CLUSTER_"
)
SECRET = re.compile(r"AKIA[0-9A-Z]{16}|secret_access_key|AWS_SECRET|BEGIN [A-Z ]*PRIVATE KEY|RAY_AUTH_TOKEN=", re.I)
NIGHTLY = re.compile(r"nightly|ray-wheels|3\.0\.0\.dev|/latest/")
EC2 = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
RAY_OPTIONS = {option for parameter in ray_start.params for option in parameter.opts}


def problems(text: str) -> list[str]:
    """What is wrong with a launcher file; empty if nothing is."""
    config = yaml.safe_load(text)
    try:
        prepared = prepare_config(config)
        validate_config(prepared)
    except (ValidationError, ValueError, KeyError, AssertionError) as error:
        return [f"Ray: {error}"]
    found = [*_provider(config["provider"]), *_nodes(prepared), *_starts(prepared), *_versions(prepared)]
    found += [f"secret: {hit.group()}" for hit in SECRET.finditer(text)]
    for number, line in enumerate(text.splitlines(), 1):
        if PLACEHOLDER.search(line.partition("#")[0]) and "# EDIT" not in line:
            found.append(f"line {number} has no # EDIT: {line.strip()}")
    return found


def _provider(provider: dict[str, Any]) -> Iterator[str]:
    for key in provider.keys() - PROVIDER_KEYS:
        yield f"provider: {key}"


def _nodes(config: dict[str, Any]) -> Iterator[str]:
    types = config["available_node_types"]
    for name, node in types.items():
        report = ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, EC2)
        if report.has_errors():
            yield f"{name}: {report.generate_report()}"
            continue
        wanted = {"ImageId", "InstanceType", "IamInstanceProfile", "SecurityGroupIds", "BlockDeviceMappings"}
        for key in wanted - node["node_config"].keys():
            yield f"{name}: no {key}"
        if node["node_config"].get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name}: its metadata service answers without a token"
        for disk in node["node_config"].get("BlockDeviceMappings", []):
            if disk["Ebs"].get("VolumeSize", 0) < 100 or not disk["Ebs"].get("Encrypted"):
                yield f"{name}: disk of {disk['Ebs']}"
    head = types[config["head_node_type"]]
    if head["resources"] != {"CPU": 0}:
        yield f"head: resources {head['resources']}"
    workers = {name: node for name, node in types.items() if name != config["head_node_type"]}
    for name, node in workers.items():
        if node["min_workers"] != 0 or node["max_workers"] < 1:
            yield f"{name}: from {node['min_workers']} to {node['max_workers']} workers"
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if spot != ("GPU" in node["resources"]):
            yield f"{name}: spot is for nodes with GPUs"
    if config["max_workers"] < sum(node["max_workers"] for node in workers.values()):
        yield "max_workers: less than that of the node types"
    yield from _size(config, workers)


def _size(config: dict[str, Any], workers: dict[str, Any]) -> Iterator[str]:
    commands = "\n".join(config["head_setup_commands"])
    for variable, kind in ((autoscaling.CPUS, "CPU"), (autoscaling.GPUS, "GPU")):
        asked = re.search(rf"\b{variable}=(\d+)\b", commands)
        most = sum(node["max_workers"] * node["resources"].get(kind, 0) for node in workers.values())
        if asked is None or not 0 < int(asked.group(1)) <= most:
            yield f"{variable}: {asked and asked.group(1)} of {most}"


def _starts(config: dict[str, Any]) -> Iterator[str]:
    for role in ("head", "worker"):
        *_, command = config[f"{role}_start_ray_commands"]
        words = shlex.split(command)
        options = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
        for option in options.keys() - RAY_OPTIONS:
            yield f"{role}: ray start has no {option}"
        # An assignment before the command, not a word of it.
        if "RAY_AUTH_MODE=token" not in words[: words.index("start")]:
            yield f"{role}: no RAY_AUTH_MODE=token"
        if "chmod 600 ~/.ray/auth_token &&" not in command:
            yield f"{role}: a token that others can read"
        if not int(options.get("--object-store-memory", 0)) >= 1 << 30:
            yield f"{role}: object store not sized"
        if role == "worker" and f"{IDLE_WORKER}={IDLE_WORKER_MS}" not in words[: words.index("start")]:
            yield f"worker: no {IDLE_WORKER}={IDLE_WORKER_MS}"
        if role == "head" and options.get("--dashboard-host") != "127.0.0.1":
            yield f"head: dashboard on {options.get('--dashboard-host')}"
    if config["file_mounts"] != {"~/.ray/auth_token": "~/.ray/auth_token"}:
        yield f"file_mounts: {config['file_mounts']}"


def _versions(config: dict[str, Any]) -> Iterator[str]:
    everything = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    yield from (f"nightly: {command}" for command in everything if NIGHTLY.search(command))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = needed.specifiers()
    setup = "\n".join(config["setup_commands"])
    for package in ("ray", "torch", "torchvision"):
        pinned = re.search(rf"(?<![\w.-]){package}(?:\[[\w,]+\])?==([\w.]+)", setup)
        if pinned is None or not versions[package].contains(pinned.group(1)):
            yield f"{package}: {pinned and pinned.group()} against {versions[package]}"
    python = re.search(r"--python (\S+)", setup)
    if python is None or python.group(1) not in SpecifierSet(project["requires-python"]):
        yield f"python: {python and python.group(1)} against {project['requires-python']}"
    if not re.search(r"git checkout .*--detach [0-9a-f]{40}$", setup, re.M):
        yield "setup_commands: no commit is checked out"


def test_the_launcher_file_is_sound() -> None:
    assert problems(TEXT) == []


def test_editing_every_marked_line_as_told_leaves_it_sound() -> None:
    text = TEXT.replace("ami-00000000000000000", "ami-0123456789abcdef0")
    text = text.replace("sg-00000000000000000", "sg-0123456789abcdef0").replace("0" * 40, "a1" * 20)
    text = text.replace("https://git.example.org/retroscan.git", "https://git.host.test/me/retroscan.git")
    text = text.replace("RETROSCAN_CLUSTER_CPUS=64", "RETROSCAN_CLUSTER_CPUS=80").replace("eu-central-1", "us-east-2")
    assert problems(text) == []


def test_every_command_is_a_shell_command() -> None:
    config = prepare_config(yaml.safe_load(TEXT))
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    assert len(commands) > 20
    for command in commands:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, (command, checked.stderr)


def test_a_token_that_others_can_read_is_closed_before_ray_starts(tmp_path: Path) -> None:
    """The start commands, with a `ray` that notes how it was called."""
    binaries = tmp_path / "retroscan-venv" / "bin"
    binaries.mkdir(parents=True)
    note = 'echo "$RAY_AUTH_MODE $RETROSCAN_CLUSTER_GPUS $(stat -c %a ~/.ray ~/.ray/auth_token | xargs)" >> ~/noted'
    (binaries / "ray").write_text(f"#!/bin/bash\n{note}\n")
    (binaries / "ray").chmod(0o755)
    (tmp_path / ".ray").mkdir(mode=0o755)
    (tmp_path / ".ray" / "auth_token").touch(mode=0o644)
    config = yaml.safe_load(TEXT)
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "127.0.0.1"}
    for command in (
        config["worker_start_ray_commands"][-1],
        config["head_setup_commands"][-1],
        config["head_start_ray_commands"][-1],
    ):
        subprocess.run(["bash", "-c", command], env=env, check=True)
    assert (tmp_path / "noted").read_text().splitlines() == ["token  700 600", "token 4 700 600"]


SLIPS = [
    # Ray's own validation
    ("max_workers: 8", "max_worker: 8", "Ray"),
    ("    max_workers: 4", "    max_worker: 4", "Ray"),
    ("idle_timeout_minutes", "idle_timeout_minute", "Ray"),
    ("head_node_type: head", "head_node_type: heads", "Ray"),
    ("  ssh_user:", "  ssh_users:", "Ray"),
    ("\nsetup_commands:", "\nsetup_command:", "Ray"),
    ("resources: {CPU: 16}", "resources: {CPU: sixteen}", "Ray"),
    ("resources: {CPU: 8, GPU: 1}", "resource: {CPU: 8, GPU: 1}", "Ray"),
    # what Ray passes on unread
    ("InstanceMarketOptions", "InstanceMarketOption", 'Unknown parameter in input: "InstanceMarketOption"'),
    ("MarketType: spot", "Markettype: spot", "Markettype"),
    ("MarketType: spot", "MarketType: spots", "gpu: spot"),
    ("VolumeSize: 200", "VolumSize: 200", "VolumSize"),
    ("VolumeSize: 100", "VolumeSize: 100G", "VolumeSize"),
    ("SecurityGroupIds: &groups", "SecurityGroupId: &groups", "SecurityGroupId"),
    ("IamInstanceProfile: {Name: retroscan-head}", "IamInstanceProfile: {name: retroscan-head}", "name"),
    ("HttpTokens: required", "HttpTokens: optional", "metadata"),
    ("availability_zone", "availability_zones", "provider: availability_zones"),
    # what the project promises
    ("resources: {CPU: 0}", "resources: {}", "head: resources"),
    ("resources: {CPU: 0}", "resources: {CPU: 4}", "head: resources"),
    ("    min_workers: 0", "    min_workers: 1", "from 1"),
    ("      InstanceMarketOptions: {MarketType: spot}\n", "", "gpu: spot"),
    ("Encrypted: true", "Encrypted: false", "disk"),
    ("CLUSTER_GPUS=4", "CLUSTER_GPUS=5", "RETROSCAN_CLUSTER_GPUS: 5 of 4"),
    ("RETROSCAN_CLUSTER_CPUS", "RETROSCAN_CLUSTER_CPU", "RETROSCAN_CLUSTER_CPUS: None"),
    ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard on 0.0.0.0"),
    ("--dashboard-host=127.0.0.1", "", "dashboard on None"),
    ("--metrics-export-port", "--metric-export-port", "ray start has no --metric-export-port"),
    ("--object-store-memory=8589934592", "", "worker: object store"),
    ("threshold_ms=600000", "threshold_ms=1000", "worker: no RAY_idle"),
    ("chmod 600", "chmod 644", "others can read"),
    ("~/.ray/auth_token: ~/.ray/auth_token", "{}", "file_mounts"),
    ("torch==2.14.1 ", "torch ", "torch: None"),
    ("torchvision==0.29.1", "torchvision==0.20.0", "torchvision:"),
    ("==2.60.0", "==2.59.0", "ray:"),
    ("--python 3.11", "--python 3.10", "python: 3.10"),
    ("'ray[data,default,train]==2.60.0'", "https://host.test/ray-wheels/latest/ray.whl", "nightly"),
    ("--detach " + "0" * 40, "main", "no commit"),
    (f"{'0' * 40}  # EDIT", "0" * 40, "no # EDIT"),
    ("retroscan.git ~/retroscan  # EDIT", "retroscan.git ~/retroscan", "no # EDIT"),
    ("retroscan-head}  # EDIT", "retroscan-head}  #", "no # EDIT"),
    ("worker_setup_commands: []", "worker_setup_commands: [export AWS_SECRET_ACCESS_KEY=abc]", "secret"),
]


@pytest.mark.parametrize(
    ("old", "new", "complaint"), SLIPS, ids=[f"{old.strip()[:28]}>{new.strip()[:28]}" for old, new, _ in SLIPS]
)
def test_a_slip_is_seen(old: str, new: str, complaint: str) -> None:
    assert old in TEXT
    found = problems(TEXT.replace(old, new))
    assert any(complaint in one for one in found), found


@pytest.mark.parametrize("role", ["head", "worker"])
def test_a_node_without_token_mode_is_seen(role: str) -> None:
    start, found = TEXT.index(f"\n{role}_start_ray_commands"), "RAY_AUTH_MODE=token "
    at = TEXT.index(found, start)
    assert f"{role}: no RAY_AUTH_MODE=token" in problems(TEXT[:at] + TEXT[at + len(found) :])
