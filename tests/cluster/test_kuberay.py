"""The KubeRay manifests and the image, and whether a slip in them is seen before anything is applied."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kuberaykit as kit
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from typer.main import get_command

from ad_jobs.cli.app import app
from cluster import autoscaling
from cluster.session import IDLE_WORKER, IDLE_WORKER_MS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster" / "kuberay"
TEXTS = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.yaml"))}
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
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
    if pod.get("restartPolicy", "Never") != "Never":  # the operator refuses it beside autoscaler v2
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


@pytest.mark.parametrize("name", TEXTS)
def test_a_manifest_is_sound(name: str) -> None:
    assert problems(TEXTS[name]) == []


def test_the_job_and_the_standing_cluster_are_the_same_cluster() -> None:
    cluster, job = (yaml.safe_load(TEXTS[name]) for name in ("raycluster.yaml", "rayjob.yaml"))
    assert kit.cluster_spec(job) == kit.cluster_spec(cluster)


def test_every_name_a_manifest_refers_to_is_there() -> None:
    accounts = list(yaml.safe_load_all(TEXTS["serviceaccounts.yaml"]))
    spec = kit.cluster_spec(yaml.safe_load(TEXTS["raycluster.yaml"]))
    named = {group["template"]["spec"]["serviceAccountName"] for group in kit.groups(spec).values()}
    assert named == {account["metadata"]["name"] for account in accounts}
    # The driver's AWS_ROLE_ARN goes to the workers, beside a token of their own account.
    roles = {account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] for account in accounts}
    assert len(roles) == 1
    assert {resource["metadata"]["namespace"] for text in TEXTS.values() for resource in yaml.safe_load_all(text)} == {
        "retroscan"
    }
    assert f"secret generic {spec['authOptions']['secretName']}" in (ROOT / "cluster" / "README.md").read_text()


def test_no_secret_lies_among_the_manifests() -> None:
    kinds = [resource["kind"] for text in TEXTS.values() for resource in yaml.safe_load_all(text)]
    assert kinds
    assert "Secret" not in kinds


def test_the_image_holds_the_versions_the_project_asks_for() -> None:
    needed = {r.name: r.specifier for r in map(Requirement, PROJECT["project"]["dependencies"])}
    for package, argument in (("ray", "RAY"), ("torch", "TORCH"), ("torchvision", "TORCHVISION")):
        assert needed[package].contains(docker_argument(argument)), package
        assert f"{docker_argument(argument)}" in (ROOT / "ray_config.yaml").read_text(), "the launcher's too"
    assert docker_argument("PYTHON") in SpecifierSet(PROJECT["project"]["requires-python"])


def test_the_image_holds_the_packages_and_no_root() -> None:
    stages = re.split(r"^FROM .*$", DOCKERFILE, flags=re.M)
    users = re.findall(r"^USER (\S+)$", stages[-1], re.M)
    spec = kit.cluster_spec(yaml.safe_load(TEXTS["raycluster.yaml"]))
    pod = spec["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert users == [f"{pod['runAsUser']}:{pod['runAsGroup']}"]
    assert f"useradd --uid {pod['runAsUser']} " in stages[-1]
    copied = {source for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for source in line.split()}
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    readme, licence = PROJECT["project"]["readme"], PROJECT["project"]["license-files"]
    assert copied == packages | {"pyproject.toml", readme, *licence}
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


CLUSTER_SLIPS = [
    # fields of KubeRay
    ("maxReplicas:", "maxReplica:", "'maxReplica' was unexpected"),
    ("minReplicas:", "minReplica:", "'minReplica' was unexpected"),
    ("groupName:", "groupname:", "'groupname'"),
    ("workerGroupSpecs:", "workerGroupSpec:", "'workerGroupSpec'"),
    ("headGroupSpec:", "headGroupSpecs:", "'headGroupSpecs'"),
    ("enableInTreeAutoscaling: true", "enableInTreeAutoscaler: true", "'enableInTreeAutoscaler'"),
    ("enableInTreeAutoscaling: true", 'enableInTreeAutoscaling: "true"', "not of type 'boolean'"),
    ("autoscalerOptions:", "autoscalerOption:", "'autoscalerOption'"),
    ("idleTimeoutSeconds:", "idleTimeoutMinutes:", "'idleTimeoutMinutes'"),
    ("version: v2", "version: v3", "'v3'"),
    ("authOptions:", "authOption:", "'authOption'"),
    ("mode: token", "mode: tokens", "'tokens'"),
    ("secretName:", "secret:", "'secret'"),
    ("rayStartParams:", "rayStartParam:", "'rayStartParam'"),
    ('num-cpus: "0"', "num-cpus: 0", "0 is not of type 'string'"),
    ("apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1", "'ray.io/v1alpha1'"),
    # fields of Kubernetes
    ("containerPort: 6379", "containerport: 6379", "'containerPort'"),
    ("volumeMounts:", "volumeMount:", "volumeMount"),
    ("mountPath: /dev/shm", "path: /dev/shm", "'mountPath'"),
    ("medium: Memory, sizeLimit", "medium: Memory, sizeLimits", "sizeLimits"),
    ("tolerations:", "toleration:", "toleration"),
    ("operator: Exists", "operators: Exists", "operators"),
    ("runAsNonRoot: true", "runAsNonroot: true", "runAsNonroot"),
    ("allowPrivilegeEscalation", "allowPrivilegesEscalation", "allowPrivilegesEscalation"),
    ("serviceAccountName:", "serviceAccounts:", "serviceAccounts"),
    ('    limits: {cpu: "1", memory: 1Gi}', '    limit: {cpu: "1", memory: 1Gi}', "limit"),
    ('requests: {cpu: "7"', 'request: {cpu: "7"', "request"),
    ("{name: AWS_REGION, value: eu-central-1}", "{name: AWS_REGION, values: eu-central-1}", "values"),
    ("namespace: retroscan", "namespaces: retroscan", "namespaces"),
    # what the project promises
    ("mode: token", "mode: disabled", "authOptions"),
    ("rayVersion: 2.60.0", "rayVersion: 2.59.0", "rayVersion: 2.59.0"),
    ("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "autoscaling is off"),
    ('num-cpus: "0"', 'num-cpus: "2"', "head: it takes work"),
    ("minReplicas: 0", "minReplicas: 1", "from 1"),
    ("runAsNonRoot: true", "runAsNonRoot: false", "may run as root"),
    ("runAsUser: 1000", "runAsUser: 0", "may run as root"),
    ("type: RuntimeDefault", "type: Unconfined", "seccomp"),
    ("drop: [ALL]", "drop: []", "keeps privileges"),
    ("medium: Memory, sizeLimit: 2Gi", "sizeLimit: 2Gi", "head: object store"),
    ("sizeLimit: 10Gi", "sizeLimit: 4Gi", "cpu: object store"),
    ("sizeLimit: 10Gi", "sizeLimit: 20Gi", "gpu: /dev/shm takes more"),
    ('memory: 28Gi, nvidia.com/gpu: "1"}  # EDIT\n', "memory: 28Gi}  # EDIT\n", "gpu: limits"),
    ("{key: spot, ", "{key: spots, ", "gpu: limits"),
    ("automountServiceAccountToken: false", "automountServiceAccountToken: true", "API server"),
    ("app.kubernetes.io/part-of: retroscan", "app.kubernetes.io/part-of: ray", "no network policy"),
    ('RETROSCAN_CLUSTER_GPUS, value: "4"', 'RETROSCAN_CLUSTER_GPUS, value: "9"', "RETROSCAN_CLUSTER_GPUS: 9 of 4"),
    ("RETROSCAN_CLUSTER_CPUS", "RETROSCAN_CLUSTER_CPU", "RETROSCAN_CLUSTER_CPUS: None"),
    ("{name: AWS_REGION,", "{name: RAY_AUTH_TOKEN,", "RAY_AUTH_TOKEN in the manifest"),
    ('threshold_ms, value: "600000"', 'threshold_ms, value: "1000"', "gpu: no RAY_idle"),
    ("cpu  # EDIT", "cpu", "no # EDIT"),
    ("maxReplicas: 4  # EDIT", "maxReplicas: 4", "no # EDIT"),
]
SLIPS = [
    *(("raycluster.yaml", *slip) for slip in CLUSTER_SLIPS),
    *(("rayjob.yaml", *slip) for slip in CLUSTER_SLIPS[:: len(CLUSTER_SLIPS) // 5]),  # the same cluster, deeper in
    ("rayjob.yaml", "backoffLimit:", "backOffLimit:", "'backOffLimit'"),
    ("rayjob.yaml", "backoffLimit: 5", "backoffLimit: -1", "less than the minimum"),
    ("rayjob.yaml", "backoffLimit: 5", "backoffLimit: 0", "tried again"),
    ("rayjob.yaml", "shutdownAfterJobFinishes:", "shutdownAfterJobFinish:", "'shutdownAfterJobFinish'"),
    ("rayjob.yaml", "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "ends with it"),
    ("rayjob.yaml", "submissionMode: HTTPMode", "submissionMode: HttpMode", "'HttpMode'"),
    ("rayjob.yaml", "rayClusterSpec:", "rayClusterSpecs:", "'rayClusterSpecs'"),
    ("rayjob.yaml", "entrypoint:", "entryPoint:", "'entryPoint'"),
    ("rayjob.yaml", "--model ", "--models ", "entrypoint: --models"),
    ("rayjob.yaml", "--out ", "", "entrypoint: --out"),
    ("rayjob.yaml", " --address auto", "", "ends with"),
    ("rayjob.yaml", "retroscan scan s3", "retroscan skan s3", "retroscan skan"),
    ("networkpolicy.yaml", "podSelector:", "podSelectors:", "podSelectors"),
    ("networkpolicy.yaml", "namespaceSelector:", "namespaceSelectors:", "namespaceSelectors"),
    ("networkpolicy.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: [Ingress]", "policyTypes"),
    ("networkpolicy.yaml", "  policyTypes: [Ingress]\n", "", "policyTypes"),
    ("networkpolicy.yaml", "part-of: retroscan}\n  policyTypes", "part-of: ray}\n  policyTypes", "does not select"),
    ("networkpolicy.yaml", "port: 8265", "port: 6379", "other namespaces"),
    ("networkpolicy.yaml", "port: 443", "port: 80", "egress to"),
    ("networkpolicy.yaml", "            except: [169.254.0.0/16]\n", "", "egress to"),
    ("networkpolicy.yaml", 'matchLabels: {retroscan/submits: "true"}', "matchLabels: {}", "every namespace"),
    (
        "networkpolicy.yaml",
        'matchLabels: {retroscan/submits: "true"}',
        "matchLabels: {retroscan/submits: true}",
        "not of type",
    ),
    ("networkpolicy.yaml", "kind: NetworkPolicy", "kind: NetworkPolicies", "no such resource"),
    ("serviceaccounts.yaml", "annotations:", "annotation:", "annotation"),
    (
        "serviceaccounts.yaml",
        "automountServiceAccountToken",
        "automountServiceAccountTokens",
        "automountServiceAccountTokens",
    ),
    ("serviceaccounts.yaml", "role-arn: arn:aws", "role-arn: aws", "no role"),
]


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        pytest.param(*slip, id=f"{slip[0].removesuffix('.yaml')}-{slip[1].strip()[:24]}>{slip[2].strip()[:24]}")
        for slip in SLIPS
    ],
)
def test_a_slip_is_seen(name: str, old: str, new: str, complaint: str) -> None:
    assert old in TEXTS[name]
    found = problems(TEXTS[name].replace(old, new))
    assert any(complaint in one for one in found), found
