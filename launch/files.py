"""Renders the files of Ray's cluster launcher and of Kubernetes, which differ between clusters, from templates.

``python -m launch.files`` writes all files into the project. ``python -m launch.files FILE name=value ...`` prints one
file with other sizes: ``python -m launch.files launch/kubernetes/rayjob.yaml queue=team-a max_workers=2``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from rlhf.errors import UserError

ROOT = Path(__file__).parents[1]
TEMPLATES = Path(__file__).parent / "templates"

FILES = (
    "cluster.yaml",
    "launch/kubernetes/access.yaml",
    "launch/kubernetes/raycluster.yaml",
    "launch/kubernetes/rayjob.yaml",
)
"""Rendered files, each from the template of the same name in ``launch/templates``."""

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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that differ between clusters."""

    name: str = "rlhf"
    provider: str = "aws"
    """Provider in ``cluster.yaml``. Ray's ``fake_multinode`` is for tests: every node is a local process."""
    kind: str = "gpu"
    """Environment on the nodes: ``cpu`` or ``gpu``, as for ``make env ENV=``."""
    min_workers: int = 1
    max_workers: int = 4
    cpus: int = 192
    """CPUs of a worker."""
    gpus: int = 8
    """GPUs of a worker."""
    memory_gib: int = 1800
    """Memory of a worker, on Kubernetes."""
    image: str = "rlhf:gpu"
    """Image built from ``launch/Containerfile``, as the nodes of a Kubernetes cluster find it."""
    queue: str = ""
    """Kueue's local queue; empty: none."""
    recipe: str = "recipes/llama_8b_8gpu.yaml"
    """Recipe that a RayJob runs."""


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
    }


def ray_version() -> str:
    """The pinned version of Ray."""
    lines = (ROOT / "requirements" / "gpu.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("ray=="))


def parse(words: Sequence[str]) -> Settings:
    """Parse settings from ``name=value`` words.

    Raises:
        UserError: a setting is unknown, or its value is not a number although it must be one.
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
    return replace(Settings(), **given)


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
