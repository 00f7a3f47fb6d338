"""The Kubernetes files satisfy the schemas of KubeRay and Kubernetes, and open no port without a token."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from launch.cli import parse as parse_command
from launch.files import ENVIRONMENT, ROOT, Settings, render
from rlhf.config.load import load_recipe
from tests.launch.kuberay import SCHEMAS

KUBERNETES = "1.37"
CLUSTER, JOB, ACCESS = (f"launch/kubernetes/{name}.yaml" for name in ("raycluster", "rayjob", "access"))
RAY = [(file, queue) for file in (CLUSTER, JOB) for queue in ("", "team-a")]

each_ray_file = pytest.mark.parametrize(("file", "queue"), RAY)


def load(file: str, queue: str = "") -> dict[str, Any]:
    return yaml.safe_load(render(file, Settings(queue=queue)))


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    return resource["spec"].get("rayClusterSpec", resource["spec"])


def pods(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every pod template of a resource: head, workers, and the submitter."""
    cluster = cluster_of(resource)
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster["workerGroupSpecs"])
    if "submitterPodTemplate" in resource["spec"]:
        yield resource["spec"]["submitterPodTemplate"]


def check(resource: dict[str, Any]) -> None:
    """Check a resource by the schema of its kind, and its pods by Kubernetes' own."""
    Draft202012Validator(SCHEMAS[resource["kind"]]).validate(resource)
    for template in pods(resource):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@each_ray_file
def test_the_schemas_take_it(file: str, queue: str) -> None:
    check(load(file, queue))


def test_what_stands_beside_it_is_kubernetes_own() -> None:
    resources = list(yaml.safe_load_all(render(ACCESS)))
    assert [resource["kind"] for resource in resources] == ["PersistentVolumeClaim", "NetworkPolicy"]
    for resource in resources:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entryPoint"), "rlhf"),
        (("spec", "backoffLimit"), "3"),
        (("spec", "submissionMode"), "Job"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "none"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "container"), []),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volumes", 0, "emptyDir"), "memory"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_the_schemas_refuse_what_is_wrong(path: tuple[str | int, ...], value: Any) -> None:
    job = copy.deepcopy(load(JOB))
    place: Any = job
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises((ValidationError, kubernetes_validate.ValidationError)):
        check(job)


@each_ray_file
def test_nobody_gets_in_without_the_token(file: str, queue: str) -> None:
    cluster = cluster_of(load(file, queue))
    assert cluster["authOptions"] == {"mode": "token"}
    assert "serviceType" not in cluster["headGroupSpec"], "the head's service stays inside the Kubernetes cluster"


@each_ray_file
def test_the_wall_stands_around_every_pod(file: str, queue: str) -> None:
    policy = list(yaml.safe_load_all(render(ACCESS)))[1]["spec"]
    wanted = policy["podSelector"]["matchLabels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    assert all(wanted <= template["metadata"]["labels"].items() for template in pods(load(file, queue)))
    operator = policy["ingress"][1]
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]


@each_ray_file
def test_pods_have_no_more_rights_than_they_need(file: str, queue: str) -> None:
    resource = load(file, queue)
    for template in pods(resource):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
    head, *others = pods(resource)
    assert head["spec"]["automountServiceAccountToken"] is ("enableInTreeAutoscaling" in cluster_of(resource))
    assert not any(template["spec"]["automountServiceAccountToken"] for template in others)


@each_ray_file
def test_the_pods_have_the_environment_of_all_launchers(file: str, queue: str) -> None:
    """The token mode is set by KubeRay."""
    cluster = cluster_of(load(file, queue))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        given = {variable["name"]: variable["value"] for variable in container["env"]}
        assert given == {name: value for name, value in ENVIRONMENT.items() if name != "RAY_AUTH_MODE"}


def test_every_node_sees_the_same_runs() -> None:
    claim = next(iter(yaml.safe_load_all(render(ACCESS))))
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    cluster = cluster_of(load(CLUSTER))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        assert {"name": "runs", "mountPath": "/opt/rlhf/runs"} in spec["containers"][0]["volumeMounts"]
        assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("file", [CLUSTER, JOB])
def test_kueue_is_given_a_cluster_of_one_size(file: str) -> None:
    """Kueue refuses a cluster that may grow by itself."""
    resource = load(file, "team-a")
    cluster = cluster_of(resource)
    assert resource["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team-a"}
    assert "enableInTreeAutoscaling" not in cluster
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


def test_kueue_admits_a_whole_job_or_none_of_it() -> None:
    job = load(JOB, "team-a")
    assert job["spec"]["suspend"] is True
    assert job["spec"]["shutdownAfterJobFinishes"] is True, "Kueue takes no job that keeps its cluster"
    assert "labels" not in load(JOB)["metadata"]
    assert "suspend" not in load(JOB)["spec"]


def test_the_job_is_a_command_that_parses_with_a_recipe_that_loads() -> None:
    name, *arguments = load(JOB)["spec"]["entrypoint"].split()
    options = parse_command(arguments).options
    assert name == "rlhf"
    assert load_recipe(ROOT / options["recipe"], options["overrides"]).placement.ray_address == "auto"
