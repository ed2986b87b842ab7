"""What KubeRay 1.6 and Kubernetes take: a judge of manifests that knows every field, and so sees a slip in its name.

The fields of ray.io/v1 stand here, as KubeRay's API reference lists them (v1.6.2); operators drop a field they do not
know without a word.
What Kubernetes itself defines, pod templates among it, is judged by its own schemas in `kubernetes-validate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.34"

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
NUMBER: Schema = {"type": "number", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
# Kubernetes' own: judged by `kubernetes`.
ANY_OBJECT: Schema = {"type": "object"}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def some(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def closed(*required: str, **fields: Schema) -> Schema:
    """An object of these fields and no other."""
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": fields}


GROUP = {"template": ANY_OBJECT, "rayStartParams": TEXTS, "resources": TEXTS, "labels": TEXTS}
HEAD = closed(
    "template",
    "rayStartParams",
    **GROUP,
    headService=ANY_OBJECT,
    enableIngress=FLAG,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
)
WORKERS = closed(
    "groupName",
    "template",
    "rayStartParams",
    "minReplicas",
    "maxReplicas",
    **GROUP,
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    suspend=FLAG,
    scaleStrategy=closed(workersToDelete=some(TEXT)),
)
AUTOSCALER = closed(
    version=one_of("v1", "v2"),
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    idleTimeoutSeconds=COUNT,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    resources=ANY_OBJECT,
    securityContext=ANY_OBJECT,
    env=some(ANY_OBJECT),
    envFrom=some(ANY_OBJECT),
    volumeMounts=some(ANY_OBJECT),
)
CREDENTIAL = closed(value=TEXT, valueFrom=ANY_OBJECT)
MANAGER = one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
CLUSTER = closed(
    "headGroupSpec",
    headGroupSpec=HEAD,
    workerGroupSpecs=some(WORKERS),
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    authOptions=closed(mode=one_of("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=FLAG),
    gcsFaultToleranceOptions=closed(
        redisAddress=TEXT, redisUsername=CREDENTIAL, redisPassword=CREDENTIAL, externalStorageNamespace=TEXT
    ),
    headServiceAnnotations=TEXTS,
    suspend=FLAG,
    managedBy=MANAGER,
    upgradeStrategy=closed(type=one_of("Recreate", "None")),
)
DELETED = one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")
JOB = closed(
    "entrypoint",
    entrypoint=TEXT,
    rayClusterSpec=CLUSTER,
    clusterSelector=TEXTS,
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds={**COUNT, "minimum": 1},
    preRunningDeadlineSeconds={**COUNT, "minimum": 1},
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    metadata=TEXTS,
    suspend=FLAG,
    managedBy=MANAGER,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=TEXT,
    submitterPodTemplate=ANY_OBJECT,
    submitterConfig=closed(backoffLimit=COUNT),
    deletionStrategy=closed(
        onSuccess=closed(policy=DELETED),
        onFailure=closed(policy=DELETED),
        deletionRules=some(
            closed(
                "policy",
                "condition",
                policy=DELETED,
                condition=closed(ttlSeconds=COUNT, jobStatus=TEXT, jobDeploymentStatus=TEXT),
            )
        ),
    ),
)
RESOURCES = {
    kind: closed(
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        apiVersion=one_of("ray.io/v1"),
        kind=one_of(kind),
        metadata=ANY_OBJECT,
        spec=spec,
    )
    for kind, spec in (("RayCluster", CLUSTER), ("RayJob", JOB))
}


def schema_problems(resource: dict[str, Any]) -> list[str]:
    """What the schemas have against a resource; empty if nothing."""
    kind = resource.get("kind", "")
    if kind not in RESOURCES:
        return list(kubernetes(resource))
    found = jsonschema.Draft202012Validator(RESOURCES[kind]).iter_errors(resource)
    problems = [f"{error.json_path}: {error.message}" for error in found]
    return problems or [problem for part in _embedded(resource) for problem in kubernetes(part)]


def kubernetes(resource: dict[str, Any]) -> Iterator[str]:
    """What Kubernetes' own strict schemas have against a resource."""
    try:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{error.json_path}: {error.message}"
    except (kubernetes_validate.SchemaNotFoundError, KeyError) as error:
        yield f"no such resource: {getattr(error, 'message', error)}"


def cluster_spec(resource: dict[str, Any]) -> dict[str, Any]:
    """The cluster that a RayCluster or a RayJob describes."""
    spec: dict[str, Any] = resource["spec"]
    return spec if resource["kind"] == "RayCluster" else spec["rayClusterSpec"]


def groups(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The head and the worker groups, by name."""
    return {"head": spec["headGroupSpec"], **{g["groupName"]: g for g in spec.get("workerGroupSpecs", [])}}


def _embedded(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a RayCluster or RayJob holds of Kubernetes' own, as resources of Kubernetes."""
    spec = cluster_spec(resource)
    templates = [group["template"] for group in groups(spec).values()]
    if autoscaler := spec.get("autoscalerOptions"):
        own = ("version", "upscalingMode", "idleTimeoutSeconds")
        container = {"name": "autoscaler", **{key: value for key, value in autoscaler.items() if key not in own}}
        templates.append({"spec": {"containers": [container]}})
    for template in templates:
        yield {"apiVersion": "v1", "kind": "PodTemplate", "metadata": resource["metadata"], "template": template}
