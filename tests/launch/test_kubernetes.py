"""The Kubernetes files satisfy the schemas of KubeRay and Kubernetes, and open no port without a token."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from launch.cli import parse as parse_command
from launch.doctor.needs import Hardware, needs_of
from launch.files import EFA, ENVIRONMENT, ROOT, Settings, render
from launch.node_sizes import GIB, node_sizes
from rlhf.config.load import load_recipe
from rlhf.errors import UserError
from tests.launch.kuberay import SCHEMAS

KUBERNETES = "1.37"
NAMES = ("raycluster", "rayjob", "access", "shell")
CLUSTER, JOB, ACCESS, SHELL = (f"launch/kubernetes/{name}.yaml" for name in NAMES)
RAY = [(file, queue) for file in (CLUSTER, JOB) for queue in ("", "team-a")]

each_ray_file = pytest.mark.parametrize(("file", "queue"), RAY)


def load(file: str, queue: str = "", **settings: Any) -> dict[str, Any]:
    return yaml.safe_load(render(file, Settings(queue=queue, **settings)))


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
    kinds = ["PersistentVolumeClaim", "PersistentVolumeClaim", "NetworkPolicy"]
    assert [resource["kind"] for resource in resources] == kinds
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
    policy = list(yaml.safe_load_all(render(ACCESS)))[-1]["spec"]
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
        given = {variable["name"]: variable.get("value") for variable in container["env"]}
        expected = {name: value for name, value in ENVIRONMENT.items() if name != "RAY_AUTH_MODE"}
        assert expected.items() <= given.items() and "RAY_AUTH_MODE" not in given


def groups_of(resource: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(resource)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("file", [CLUSTER, JOB])
def test_every_node_sees_the_same_runs_and_data(file: str) -> None:
    claims = list(yaml.safe_load_all(render(ACCESS)))[:2]
    assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in claims)
    for group in groups_of(load(file)):
        spec = group["template"]["spec"]
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert (mounts["runs"], mounts["data"]) == ("/opt/rlhf/runs", "/opt/rlhf/data")
        named = [volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"][:2]]
        assert named == [claim["metadata"]["name"] for claim in claims]


@pytest.mark.parametrize("file", [CLUSTER, JOB])
def test_secrets_come_from_the_clusters_secret_and_may_be_absent(file: str) -> None:
    for group in groups_of(load(file)):
        [container] = group["template"]["spec"]["containers"]
        secret = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in container["env"] if "valueFrom" in v}
        assert secret == {
            name: {"name": "rlhf-secrets", "key": name, "optional": True}
            for name in ("WANDB_API_KEY", "HF_TOKEN", "RLHF_REWARD_TOKEN")
            if container["name"] == "ray-head" or name != "WANDB_API_KEY"  # only the driver speaks with W&B
        }


def gib(text: str) -> int:
    return int(text.removesuffix("Gi"))


def test_the_sizes_are_the_plans_and_fit_the_machine() -> None:
    """The object store lies in the shared memory, that in the memory of the pod, and that in its machine's."""
    for group in groups_of(load(JOB)):
        spec, given = group["template"]["spec"], group["rayStartParams"]
        limits = spec["containers"][0]["resources"]["limits"]
        store, memory = int(given["object-store-memory"]), int(given["memory"])
        [shared] = [gib(v["emptyDir"]["sizeLimit"]) for v in spec["volumes"] if v["name"] == "shared-memory"]
        assert store + memory == gib(limits["memory"]) * GIB, "Ray offers no more than the container has"
        assert store < shared * GIB < gib(limits["memory"]) * GIB
    planned = node_sizes(load_recipe(ROOT / Settings().recipe), "pipeline", gpus=8, cpus=192)
    [worker] = cluster_of(load(JOB))["workerGroupSpecs"]
    assert int(worker["rayStartParams"]["object-store-memory"]) == planned.object_store
    assert worker["replicas"] == planned.workers == 1
    assert int(limits["cpu"]) < 192 and gib(limits["memory"]) < 2048
    assert (
        int(
            load(JOB, object_store_gib=7)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["rayStartParams"][
                "object-store-memory"
            ]
        )
        == 7 * GIB
    )


def test_a_machine_that_is_too_small_is_refused() -> None:
    with pytest.raises(UserError, match="needs .* GiB of memory on a worker; its pod has"):
        load(JOB, memory_gib=256)


@each_ray_file
def test_a_pod_that_ends_asks_its_run_to_stop_and_has_the_time(file: str, queue: str) -> None:
    grace = load_recipe(ROOT / Settings().recipe).checkpoint.grace_seconds
    for group in groups_of(load(file, queue)):
        spec = group["template"]["spec"]
        [container] = spec["containers"]
        *program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert program == ["python", "-m", "launch.leave"]
        assert grace < int(seconds) < spec["terminationGracePeriodSeconds"]
    [head, _] = [group["template"]["spec"]["containers"][0] for group in groups_of(load(file, queue))]
    waits = {variable["name"]: variable.get("value") for variable in head["env"]}
    assert int(waits["RAY_JOB_STOP_WAIT_TIME_S"]) > grace, "a RayJob that is deleted has Ray stop its job"


def test_gpu_pods_bear_the_taint_of_gpu_nodes() -> None:
    head, worker = groups_of(load(JOB))
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert worker["template"]["spec"]["tolerations"] == [toleration]
    assert "tolerations" not in head["template"]["spec"]
    [_, chosen] = groups_of(load(JOB, node="p5.48xlarge"))
    assert chosen["template"]["spec"]["nodeSelector"] == {"node.kubernetes.io/instance-type": "p5.48xlarge"}
    assert "nodeSelector" not in worker["template"]["spec"]


@pytest.mark.parametrize(
    ("rdma", "resource", "variables"),
    [
        ("vpc.amazonaws.com/efa:32", {"vpc.amazonaws.com/efa": 32}, {"FI_PROVIDER", "FI_EFA_USE_DEVICE_RDMA"}),
        ("rdma/ib:8", {"rdma/ib": 8}, set()),
    ],
)
def test_devices_for_rdma_are_an_option(rdma: str, resource: dict[str, int], variables: set[str]) -> None:
    job = load(JOB, rdma=rdma)
    check(job)
    head, worker = groups_of(job)
    [container] = worker["template"]["spec"]["containers"]
    assert resource.items() <= container["resources"]["limits"].items()
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert {v["name"] for v in container["env"] if v["name"].startswith("FI_")} == variables
    assert not resource.keys() & head["template"]["spec"]["containers"][0]["resources"]["limits"].keys()
    with pytest.raises(UserError, match="it is a resource's name and a number"):
        load(JOB, rdma="rdma/ib")


def test_the_commented_options_are_options() -> None:
    """Each is the line that its setting renders, or a field of Kubernetes."""
    lines = [line.strip() for line in render(JOB).splitlines()]
    rdma = [line.strip() for line in render(JOB, Settings(rdma="vpc.amazonaws.com/efa:32")).splitlines()]
    for name, value in EFA.items():
        variable = f'- {{name: {name}, value: "{value}"}}'
        assert f"# {variable}" in lines and variable in rdma
    assert any(line.startswith("# vpc.amazonaws.com/efa: 32") for line in lines)
    assert "vpc.amazonaws.com/efa: 32" in rdma


def test_the_shell_has_the_volumes_of_a_runs_pods_and_no_more_rights() -> None:
    pod = load(SHELL)
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    head = groups_of(load(JOB))[0]["template"]["spec"]
    places = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert places.items() <= {m["name"]: m["mountPath"] for m in head["containers"][0]["volumeMounts"]}.items()
    assert pod["spec"]["volumes"] == head["volumes"][:2]
    assert pod["spec"]["containers"][0]["securityContext"] == head["containers"][0]["securityContext"]
    assert "labels" not in pod["metadata"], "the network policy lets it reach no port of Ray"


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
    entrypoint = shlex.split(load(JOB)["spec"]["entrypoint"])
    program, (file, *arguments) = entrypoint[:5], entrypoint[5:]
    options = parse_command(arguments).options
    assert program == ["exec", "python", "-m", "launch.attempt", "--job"]
    assert file.startswith("/opt/rlhf/runs/"), "it outlives the pods"
    assert load_recipe(ROOT / options["recipe"], options["overrides"]).placement.ray_address == "auto"


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({}, "data/preferences.jsonl"),
        ({"settings": "ppo.steps=3"}, "data/preferences.jsonl"),
        ({"data": "data/ours.jsonl", "settings": "ppo.steps=3"}, "data/ours.jsonl"),
        ({"settings": "data.path=data/x.jsonl"}, "data/x.jsonl"),
        ({"recipe": "recipes/quickstart.yaml", "gpus": 0, "cpus": 8}, None),
    ],
)
def test_a_job_has_the_path_of_the_data_whatever_its_settings(settings: dict[str, Any], data: str | None) -> None:
    """Unless its recipe names other data, beside which the path would be refused."""
    entrypoint = shlex.split(load(JOB, **settings)["spec"]["entrypoint"])
    options = parse_command(entrypoint[5:][1:]).options
    assert load_recipe(ROOT / options["recipe"], options["overrides"]).data.path == data
    assert ("ppo.steps=3" in entrypoint) == ("ppo.steps" in settings.get("settings", ""))


def volumes(**settings: Any) -> dict[str, dict[str, Any]]:
    claims = list(yaml.safe_load_all(render(ACCESS, Settings(**settings))))[:2]
    return {claim["metadata"]["name"]: claim["spec"] for claim in claims}


def size(claim: dict[str, Any]) -> int:
    return gib(claim["resources"]["requests"]["storage"])


def test_the_volume_of_runs_has_room_for_what_the_plan_writes() -> None:
    big = "recipes/llama_70b_cluster.yaml"
    needs = needs_of(load_recipe(ROOT / big, ["data.path=p"]), "pipeline", Hardware(nodes=8, cpus=192, gpus=8))
    assert needs is not None
    assert needs.room.total < size(volumes(recipe=big)["rlhf-runs"]) * GIB < 1.2 * needs.room.total
    assert size(volumes(recipe=big, runs_gib=7)["rlhf-runs"]) == 7
    unknown = {"settings": "model.path=nobody/has-it"}
    assert size(volumes(**unknown, runs_gib=7)["rlhf-runs"]) == 7
    with pytest.raises(UserError, match="does not know how much") as caught:
        volumes(**unknown)
    assert caught.value.fix == "runs_gib=..."


def test_storage_class_and_pull_secret_are_options() -> None:
    assert all("storageClassName" not in claim for claim in volumes().values())
    assert {claim["storageClassName"] for claim in volumes(storage_class="efs-sc").values()} == {"efs-sc"}
    for file in (CLUSTER, JOB):
        resource = load(file, pull_secret="registry")
        check(resource)
        assert [pod["spec"]["imagePullSecrets"] for pod in pods(resource)] == [[{"name": "registry"}]] * len(
            list(pods(resource))
        )
        assert not any("imagePullSecrets" in pod["spec"] for pod in pods(load(file)))
    shell = load(SHELL, pull_secret="registry")
    kubernetes_validate.validate(shell, KUBERNETES, strict=True)
    assert shell["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_the_autoscaler_has_no_more_rights_than_the_other_containers() -> None:
    """KubeRay adds its container to the head's pod, which a namespace with the standard `restricted` would refuse."""
    cluster = cluster_of(load(CLUSTER))
    [head] = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert cluster["autoscalerOptions"]["securityContext"] == head["securityContext"]


def test_settings_are_quoted_for_the_shell() -> None:
    """The submitter's pod gives the entry point to a shell."""
    job = load(JOB, settings="data.path=data/x.jsonl 'tracking.tags=[a, b]'")
    *_, first, second = shlex.split(job["spec"]["entrypoint"])
    assert (first, second) == ("data.path=data/x.jsonl", "tracking.tags=[a, b]")
