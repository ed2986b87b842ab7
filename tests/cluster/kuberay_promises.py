"""What this project promises of its manifests: a judge of each kind, after the schemas have had their say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command

from ad_jobs.cli.app import app
from cluster import autoscaling
from cluster.session import IDLE_WORKER, IDLE_WORKER_MS
from tests.cluster import kuberay_schemas as kit

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
LABEL = ("app.kubernetes.io/part-of", "retroscan")
UNITS = {"": 1, "m": 1e-3, "Mi": 1 << 20, "Gi": 1 << 30}
PLACEHOLDER = re.compile(
    r"example\.org|\b0{12}\b|maxReplicas:|AWS_REGION|RETROSCAN_CLUSTER_|nodeSelector:|key: spot|0\.0\.0\.0/0"
    r"|cpu: \"\d\d?\", memory: \d\dGi"
)
ROOT_USERS = {"", "0", "root"}


def problems(text: str) -> list[str]:
    """What is wrong with a file of manifests; empty if nothing is."""
    found = []
    for resource in yaml.safe_load_all(text):
        slips = kit.schema_problems(resource)
        found += slips or list(PROMISES[resource["kind"]](resource))
    for number, line in enumerate(text.splitlines(), 1):
        if PLACEHOLDER.search(line.partition("#")[0]) and "# EDIT" not in line:
            found.append(f"line {number} has no # EDIT: {line.strip()}")
    return found


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number of units or bytes."""
    number, unit = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def _cluster(resource: dict[str, Any]) -> Iterator[str]:
    spec = kit.cluster_spec(resource)
    if spec.get("rayVersion") != docker_argument("RAY"):
        yield f"rayVersion: {spec.get('rayVersion')}, the image has {docker_argument('RAY')}"
    auth = spec.get("authOptions", {})
    if auth.get("mode") != "token" or not auth.get("secretName"):
        yield f"authOptions: {auth}"
    autoscaler = spec.get("autoscalerOptions", {})
    if spec.get("enableInTreeAutoscaling") is not True or autoscaler.get("version") != "v2":
        yield "autoscaling is off, or not v2"
    yield from _container("autoscaler", autoscaler)
    if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "head: it takes work"
    for name, group in kit.groups(spec).items():
        yield from _pod(name, group)
    workers = spec.get("workerGroupSpecs", [])
    for worker in workers:
        env = worker["template"]["spec"]["containers"][0].get("env", [])
        if {"name": IDLE_WORKER, "value": str(IDLE_WORKER_MS)} not in env:
            yield f"{worker['groupName']}: no {IDLE_WORKER}={IDLE_WORKER_MS}"
        if not worker["minReplicas"] == 0 < worker["maxReplicas"]:
            yield f"{worker['groupName']}: from {worker['minReplicas']} to {worker['maxReplicas']}"
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    asked = {one["name"]: int(one["value"]) for one in head["env"] if one["name"].startswith("RETROSCAN_")}
    for variable, kind in ((autoscaling.CPUS, "cpu"), (autoscaling.GPUS, "nvidia.com/gpu")):
        most = sum(worker["maxReplicas"] * _limit(worker, kind) for worker in workers)
        if not 0 < asked.get(variable, 0) <= most:
            yield f"{variable}: {asked.get(variable)} of {most:g}"


def _pod(name: str, group: dict[str, Any]) -> Iterator[str]:
    template = group["template"]
    pod = template["spec"]
    container = pod["containers"][0]
    if template.get("metadata", {}).get("labels", {}).get(LABEL[0]) != LABEL[1]:
        yield f"{name}: no network policy selects it"
    # The operator refuses it beside autoscaler v2.
    if pod.get("restartPolicy", "Never") != "Never":
        yield f"{name}: restartPolicy"
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or str(context.get("runAsUser")) in ROOT_USERS:
        yield f"{name}: may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{name}: no seccomp profile"
    yield from _container(name, container)
    is_head = "groupName" not in group
    if pod.get("serviceAccountName") != ("retroscan-head" if is_head else "retroscan-worker"):
        yield f"{name}: service account {pod.get('serviceAccountName')}"
    if not is_head and pod.get("automountServiceAccountToken") is not False:
        yield f"{name}: may ask the API server"
    limits = container.get("resources", {}).get("limits", {})
    if container.get("resources", {}).get("requests", {}).get("memory") != limits.get("memory"):
        yield f"{name}: memory requested is not memory limited"
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    mounted = {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in container["volumeMounts"]}
    shm = mounted.get("/dev/shm", {}).get("emptyDir", {})
    store = int(group["rayStartParams"].get("object-store-memory", "0"))
    if shm.get("medium") != "Memory" or not 0 < store < quantity(shm["sizeLimit"]):
        yield f"{name}: object store of {store} bytes in {shm}"
    elif quantity(shm["sizeLimit"]) > quantity(limits["memory"]) / 2:
        yield f"{name}: /dev/shm takes more than half of the memory"
    if name == "gpu":
        tolerated = {one.get("key") for one in pod.get("tolerations", [])}
        if _limit(group, "nvidia.com/gpu") < 1 or not {"nvidia.com/gpu", "spot"} <= tolerated:
            yield f"gpu: limits {limits}, tolerates {tolerated}"


def _container(name: str, container: dict[str, Any]) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{name}: container keeps privileges"
    for variable in container.get("env", []):
        if variable["name"].startswith(("RAY_AUTH", "AWS_SECRET", "AWS_ACCESS")):
            yield f"{name}: {variable['name']} in the manifest"


def _limit(group: dict[str, Any], kind: str) -> float:
    return quantity(group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {}).get(kind, "0"))


def _job(resource: dict[str, Any]) -> Iterator[str]:
    yield from _cluster(resource)
    spec = resource["spec"]
    if spec.get("backoffLimit", 0) < 1 or spec.get("shutdownAfterJobFinishes") is not True:
        yield "a job is tried again, and its cluster ends with it"
    program, verb, *arguments = shlex.split(spec["entrypoint"])
    if (program, verb) != ("retroscan", "scan"):
        yield f"entrypoint: {program} {verb}"
        return
    parameters = get_command(app).commands["scan"].params  # type: ignore[attr-defined]
    known = {option for parameter in parameters for option in parameter.opts}
    needed = {parameter.opts[0] for parameter in parameters if parameter.required} & {"--model", "--out"}
    given = {word.partition("=")[0] for word in arguments if word.startswith("-")}
    for option in (given - known) | (needed - given):
        yield f"entrypoint: {option}"
    if arguments[-2:] != ["--address", "auto"]:
        yield f"entrypoint: ends with {arguments[-2:]}"


def _policy(resource: dict[str, Any]) -> Iterator[str]:
    spec = resource["spec"]
    if spec["podSelector"].get("matchLabels", {}).get(LABEL[0]) != LABEL[1]:
        yield "the policy does not select the cluster's pods"
    if set(spec.get("policyTypes", [])) != {"Ingress", "Egress"} & {
        word.capitalize() for word in spec if word in ("ingress", "egress")
    }:
        yield f"policyTypes: {spec.get('policyTypes')}"
    for rule in spec.get("ingress", []):
        peers = rule.get("from", [])
        if not peers:
            yield "ingress from everywhere"
        outside = [peer for peer in peers if "podSelector" not in peer]
        if outside and [port["port"] for port in rule.get("ports", [])] != [8265]:
            yield f"ingress from other namespaces to {rule.get('ports')}"
        if any(not peer.get("namespaceSelector", {}).get("matchLabels") for peer in outside):
            yield "ingress from every namespace"
    for rule in spec.get("egress", []):
        ports = {port["port"] for port in rule.get("ports", [])}
        if not rule.get("to"):
            yield "egress to everywhere"
        for peer in rule.get("to", []):
            block = peer.get("ipBlock")
            if block and (ports != {443} or "169.254.0.0/16" not in block.get("except", [])):
                yield f"egress to {block} at {ports or 'every port'}"


def _account(resource: dict[str, Any]) -> Iterator[str]:
    if not re.fullmatch(
        r"arn:aws:iam::\d{12}:role/[\w-]+",
        resource["metadata"].get("annotations", {}).get("eks.amazonaws.com/role-arn", ""),
    ):
        yield f"{resource['metadata']['name']}: no role"


PROMISES = {"RayCluster": _cluster, "RayJob": _job, "NetworkPolicy": _policy, "ServiceAccount": _account}


def docker_argument(name: str) -> str:
    """The default of an ARG."""
    found = re.search(rf"^ARG {name}=(\S+)$", DOCKERFILE, re.M)
    assert found, name
    return found.group(1)
