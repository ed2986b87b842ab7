"""The KubeRay manifests and the image, and whether a slip in them is seen before anything is applied."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.cluster import kuberay_schemas as kit
from tests.cluster import needed
from tests.cluster.kuberay_promises import DOCKERFILE, FOLDER, docker_argument, problems

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.yaml"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


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
    assert f"secret generic {spec['authOptions']['secretName']}" in (ROOT / "docs" / "cluster.md").read_text()


def test_no_secret_lies_among_the_manifests() -> None:
    kinds = [resource["kind"] for text in TEXTS.values() for resource in yaml.safe_load_all(text)]
    assert kinds
    assert "Secret" not in kinds


def test_the_image_holds_the_versions_the_project_asks_for() -> None:
    versions = needed.specifiers()
    for package, argument in (("ray", "RAY"), ("torch", "TORCH"), ("torchvision", "TORCHVISION")):
        assert versions[package].contains(docker_argument(argument)), package
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
    # The same cluster, deeper in.
    *(("rayjob.yaml", *slip) for slip in CLUSTER_SLIPS[:: len(CLUSTER_SLIPS) // 5]),
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
