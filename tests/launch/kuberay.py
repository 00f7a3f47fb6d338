"""Fields of KubeRay's RayCluster and RayJob, as a JSON schema that refuses all others.

It follows the reference of KubeRay's resources, ``ray.io/v1`` as of version 1.6 (Apache-2.0): names, types, required
fields, and allowed values. Pods are checked by Kubernetes' own schema. The resources' status is left out.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
OPAQUE: Schema = {"type": "object"}
"""Fields that are checked elsewhere, or never used here."""


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def fields(required: str = "", **properties: Schema) -> Schema:
    """Schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


MANAGERS = one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
LABELS = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": "^([A-Za-z0-9]([\\w.-]*[A-Za-z0-9])?)?$"},
}
METADATA = fields("name", name=TEXT, namespace=TEXT, labels=LABELS, annotations=TEXTS)

AUTOSCALER = fields(
    env={"type": "array"},
    envFrom={"type": "array"},
    idleTimeoutSeconds=COUNT,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    resources=OPAQUE,
    securityContext=OPAQUE,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    volumeMounts={"type": "array"},
)

HEAD_GROUP = fields(
    "rayStartParams template",
    enableIngress=FLAG,
    headService=OPAQUE,
    labels=TEXTS,
    rayStartParams=TEXTS,
    resources=TEXTS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    template=OPAQUE,
)

WORKER_GROUP = fields(
    "groupName maxReplicas minReplicas rayStartParams template",
    groupName=TEXT,
    idleTimeoutSeconds=COUNT,
    labels=TEXTS,
    maxReplicas=COUNT,
    minReplicas=COUNT,
    numOfHosts=COUNT,
    rayStartParams=TEXTS,
    replicas=COUNT,
    resources=TEXTS,
    scaleStrategy=OPAQUE,
    suspend=FLAG,
    template=OPAQUE,
)

CLUSTER = fields(
    "headGroupSpec",
    authOptions=fields(mode=one_of("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=FLAG),
    autoscalerOptions=AUTOSCALER,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=OPAQUE,
    headGroupSpec=HEAD_GROUP,
    headServiceAnnotations=TEXTS,
    managedBy=MANAGERS,
    rayVersion=TEXT,
    suspend=FLAG,
    upgradeStrategy=OPAQUE,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)

JOB = fields(
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    clusterSelector=TEXTS,
    deletionStrategy=OPAQUE,
    entrypoint=TEXT,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=TEXT,
    jobId=TEXT,
    managedBy=MANAGERS,
    metadata=TEXTS,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    rayClusterSpec=CLUSTER,
    runtimeEnvYAML=TEXT,
    shutdownAfterJobFinishes=FLAG,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterConfig=fields(backoffLimit=COUNT),
    submitterPodTemplate=OPAQUE,
    suspend=FLAG,
    ttlSecondsAfterFinished=COUNT,
)


def resource(kind: str, spec: Schema) -> Schema:
    version = one_of("ray.io/v1")
    return fields("apiVersion kind metadata spec", apiVersion=version, kind=one_of(kind), metadata=METADATA, spec=spec)


SCHEMAS = {"RayCluster": resource("RayCluster", CLUSTER), "RayJob": resource("RayJob", JOB)}
