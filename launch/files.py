"""Renders the files of Ray's cluster launcher and of Kubernetes, which differ between clusters, from templates.

``python -m launch.files`` writes all files into the project. ``python -m launch.files FILE name=value ...`` prints one
file with other sizes: ``python -m launch.files launch/kubernetes/rayjob.yaml queue=team-a max_workers=2``.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from rlhf.errors import UserError

if TYPE_CHECKING:
    from launch.node_sizes import NodeSizes
    from rlhf.config.schema import Recipe

ROOT = Path(__file__).parents[1]
TEMPLATES = Path(__file__).parent / "templates"

FILES = (
    "cluster.yaml",
    "launch/kubernetes/access.yaml",
    "launch/kubernetes/raycluster.yaml",
    "launch/kubernetes/rayjob.yaml",
    "launch/kubernetes/shell.yaml",
)
"""Rendered files, each from the template of the same name in ``launch/templates``."""

VOLUMES = "launch/kubernetes/access.yaml"
"""The file that creates volumes."""

SIZED = ("cluster.yaml", "launch/kubernetes/raycluster.yaml", "launch/kubernetes/rayjob.yaml")
"""Those with sizes that follow from a recipe's plan."""

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "DASHBOARD_METRIC_PORT": "65536",
    "AUTOSCALER_METRIC_PORT": "65536",
}
"""Variables of every node and client: they require Ray's token and switch its usage reports off.

Ray's Prometheus servers listen on every interface without a token. The nodes' server has a switch; those of the
dashboard and the autoscaler have none, but Ray continues without them if their port is invalid.
"""

PORTS = {"head": 6379, "dashboard": 8265, "client": 6385}
"""Ports on which a head listens, besides those that every node has in ``launch/ray_node.sh``."""

PACKAGES = ("build-essential", "make", "python3-dev", "python3-venv")
"""Debian and Ubuntu packages for ``launch/setup_env.sh`` and for compiling kernels on first use."""

STAYS_HERE = (".git", ".venv", ".slurm", "runs", "data", "wandb", "wheelhouse")
"""Folders of the project that are never copied to a node, into an image, or into a wheelhouse."""

NOT_COPIED = ("__pycache__", ".*_cache", "*.egg-info")
"""Patterns that are not copied either, in any folder."""


MOUNTS = {"runs": "/opt/rlhf/runs", "data": "/opt/rlhf/data"}
"""Where pods mount the volumes of runs and of data: these folders of the project, which is in the image."""

SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "RLHF_REWARD_TOKEN")
"""Variables that pods get from the cluster's secret, if it has them."""

EFA = {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"}
"""Variables with which libfabric uses AWS's EFA."""

LEAVE_SPARE_SECONDS = 20
"""How long a pod waits for its commands beyond their grace period."""

HEAD_MEMORY = 32 * 2**30
"""Memory of a head's pod, in bytes."""

ON_CPUS = {"cpus": 8, "gpus": 0, "memory_gib": 32, "image": "rlhf:cpu", "recipe": "recipes/quickstart.yaml"}
"""Defaults of other settings with ``kind=cpu``."""

NAME = re.compile("[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""Names of clusters: labels of DNS, with room for what KubeRay appends for pods and services (63 characters in all)."""

RUNS_SPARE = 1.1
"""Size of the volume of runs, per byte of the plan: metrics, samples, reports."""
LEAST_RUNS_GIB = 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that differ between clusters."""

    name: str = "rlhf"
    """Name of the cluster; with ``-runs``, ``-data`` and ``-secrets`` those of its volumes and its secret."""
    provider: str = "aws"
    """Provider in ``cluster.yaml``. Ray's ``fake_multinode`` is for tests: every node is a local process."""
    kind: str = "gpu"
    """Environment on the nodes: ``cpu`` or ``gpu``, as for ``make env ENV=``; ``ON_CPUS`` has defaults."""
    min_workers: int = 1
    max_workers: int = 4
    workers: int = 0
    """Workers of a RayJob; 0: as few as its recipe needs."""
    cpus: int = 192
    """CPUs of a worker's machine. A pod requests what Kubernetes leaves of them, and of the memory."""
    gpus: int = 8
    """GPUs of a worker."""
    memory_gib: int = 2048
    """Memory of a worker's machine, on Kubernetes."""
    node: str = ""
    """Instance type of the workers' nodes, as a node selector; empty: any with these resources."""
    rdma: str = ""
    """Devices for RDMA of a worker, as ``resource:number``, for example ``vpc.amazonaws.com/efa:32``; empty: none."""
    image: str = "rlhf:gpu"
    """Image built from ``launch/Containerfile``, as the nodes of a Kubernetes cluster find it."""
    queue: str = ""
    """Kueue's local queue; empty: none."""
    storage_class: str = ""
    """Storage class of the volumes, which must allow ReadWriteMany; empty: the cluster's default."""
    pull_secret: str = ""
    """Secret with which the nodes pull the image; empty: none."""
    recipe: str = "recipes/llama_8b_8gpu.yaml"
    """Recipe that a RayJob runs, and for whose plan object stores and shared memory are sized."""
    data: str = "data/preferences.jsonl"
    """``data.path`` of a recipe that names no data, neither itself nor in ``settings``."""
    settings: str = ""
    """The recipe's settings, separated by spaces, and quoted as in a shell."""
    object_store_gib: int = 0
    """Ray's object store on a worker; 0: the size of the recipe's plan."""
    data_gib: int = 500
    """Size of the volume of data and downloaded models."""
    runs_gib: int = 0
    """Size of the volume of runs; 0: of the checkpoints and models of the recipe's plan, and a tenth more."""
    retries: int = 20
    """Most repetitions of a RayJob; ``recovery.requeues`` limits those without a further step."""


def render(file: str, settings: Settings | None = None) -> str:
    """Render one of ``FILES``."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(file.removeprefix("launch/")).render(_values(file, settings or Settings()))


def _values(file: str, settings: Settings) -> dict[str, Any]:
    """Variables of the templates."""
    template = f"launch/templates/{file.removeprefix('launch/')}"
    return {
        **asdict(settings),
        "notice": f"Made by `python -m launch.files` from {template}: change that.",
        "environment": ENVIRONMENT,
        "ports": PORTS,
        "packages": " ".join(PACKAGES),
        "stays_here": STAYS_HERE,
        "not_copied": NOT_COPIED,
        "ray": ray_version(),
        **(_sizes(settings) if file in SIZED else {}),
        **_kubernetes(settings),
        "volumes": _volumes(settings) if file == VOLUMES else (),
    }


def _sizes(settings: Settings) -> dict[str, Any]:
    """Sizes of heads and workers, in bytes unless their names say otherwise.

    Raises:
        UserError: the recipe is wrong, its plan is unknown, or needs more memory than a worker has.
    """
    from launch.node_sizes import GIB, HEAD_STORE, allocatable_cpus, allocatable_memory

    planned = _planned(settings)
    memory = allocatable_memory(settings.memory_gib * GIB) // GIB * GIB
    if planned.memory > memory:
        needed, there = planned.memory / GIB, memory / GIB
        raise UserError(
            f"{settings.recipe} needs {needed:,.0f} GiB of memory on a worker; its pod has {there:,.0f}",
            f"a machine of memory_gib={settings.memory_gib} keeps the rest for its kernel, kubelet and other pods",
            "larger machines (memory_gib=...), or more of them (workers=...)",
        )
    return {
        "gib": GIB,
        "workers": planned.workers,
        "store_bytes": planned.object_store,
        "shared_gib": -(-planned.shared_memory // GIB),
        "memory_bytes": memory,
        "cpu_request": allocatable_cpus(settings.cpus),
        "head_store_bytes": HEAD_STORE,
        "head_memory_bytes": HEAD_MEMORY,
    }


@cache
def _planned(settings: Settings) -> NodeSizes:
    """Sizes of the plan of the settings' recipe."""
    from launch.node_sizes import GIB, node_sizes

    return node_sizes(
        _recipe(settings),
        "pipeline",
        gpus=settings.gpus,
        cpus=settings.cpus,
        workers=settings.workers,
        object_store=settings.object_store_gib * GIB,
    )


def _recipe(settings: Settings) -> Recipe:
    from rlhf.config.load import load_recipe

    path = Path(settings.recipe)  # the project's, or one of a folder that is the volume of data
    return load_recipe(path if path.exists() else ROOT / path, shlex.split(settings.settings))


def _overrides(settings: Settings) -> list[str]:
    """Settings of the recipe, with the path of the data if it names none."""
    given, data = shlex.split(settings.settings), _recipe(settings).data
    is_named = any((data.path, data.demonstrations, data.preferences, data.prompts))
    return given if is_named or not settings.data else [f"data.path={settings.data}", *given]


def _volumes(settings: Settings) -> tuple[tuple[str, int, str], ...]:
    """Volumes, with their sizes in GiB and their purposes.

    Raises:
        UserError: the plan of the recipe is unknown, and no size is given.
    """
    return (
        ("runs", settings.runs_gib or _runs_gib(settings), "Runs: checkpoints and models."),
        ("data", settings.data_gib, "Data, and models that are downloaded from the hub."),
    )


def _runs_gib(settings: Settings) -> int:
    """Size of the volume of runs for one run of the recipe."""
    from launch.node_sizes import GIB

    written = _planned(replace(settings, object_store_gib=settings.object_store_gib or 1)).runs  # 0 of an unknown plan
    if not written:
        raise UserError(
            f"the plan does not know how much {settings.recipe} writes",
            "the volume of runs has that size",
            "runs_gib=...",
        )
    return max(LEAST_RUNS_GIB, math.ceil(written * RUNS_SPARE / GIB))


def _kubernetes(settings: Settings) -> dict[str, Any]:
    """Variables of the Kubernetes templates that are not sizes."""
    if not NAME.fullmatch(settings.name):
        raise UserError(
            f"name={settings.name} is no name of a cluster",
            "pods, services and volumes are named after it: at most 40 of a-z, 0-9 and -, a letter first, no - last",
            f"for example name={_nearest_name(settings.name)}",
        )
    resource, _, devices = settings.rdma.partition(":")
    if settings.rdma and not devices.isdigit():
        raise UserError(
            f"rdma={settings.rdma}", "it is a resource's name and a number", "for example rdma=vpc.amazonaws.com/efa:32"
        )
    return {
        "mounts": MOUNTS,
        "settings": shlex.join(_overrides(settings)),  # for the shell of the submitter's pod
        "secrets": SECRETS,
        "leave_seconds": int(_recipe(settings).checkpoint.grace_seconds) + LEAVE_SPARE_SECONDS,
        "rdma_resource": resource,
        "rdma_devices": devices,
        "rdma_environment": EFA if resource.endswith("/efa") else {},
    }


def _nearest_name(name: str) -> str:
    """A name that is allowed, and like the given one."""
    near = re.sub("[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")[:40].rstrip("-")
    return near or Settings.name


def ray_version() -> str:
    """The pinned version of Ray."""
    lines = (ROOT / "requirements" / "gpu.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("ray=="))


def parse(words: Sequence[str]) -> Settings:
    """Parse settings from ``name=value`` words.

    Raises:
        UserError: a setting is unknown, or its value is not a number although it must be one, or no kind.
    """
    kinds: dict[str, type] = {name: type(value) for name, value in asdict(Settings()).items()}
    given: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            given[name] = kinds[name](value)
        except (KeyError, ValueError):
            raise UserError(
                f"{word!r} is no setting of a cluster", f"the settings are {', '.join(kinds)}", "name=value"
            ) from None
    if given.get("kind", "gpu") not in ("cpu", "gpu"):
        raise UserError(f"kind={given['kind']} is no environment", fix="kind=cpu or kind=gpu")
    return replace(Settings(), **{**(ON_CPUS if given.get("kind") == "cpu" else {}), **given})


def write_all(folder: Path = ROOT) -> None:
    """Render every file into the project."""
    for file in FILES:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(file), encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Write all files, or print one; returns the exit code."""
    if not arguments:
        write_all()
        return 0
    try:
        if arguments[0] not in FILES:
            raise UserError(f"{arguments[0]} is no rendered file", f"these are {', '.join(FILES)}", "name one of them")
        print(render(arguments[0], parse(arguments[1:])), end="")
    except UserError as error:
        print(f"launch.files: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
