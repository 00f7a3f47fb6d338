"""The package ``rlhf``: its three floors, its command, and its plugin for vLLM.

Versions live in ``requirements/``; the extras read them from there, so that there is one place to change a pin.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def pins(name: str) -> list[str]:
    """The requirements pinned in ``requirements/<name>.txt``, comments and blank lines left out."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    stripped = (line.partition("#")[0].strip() for line in lines)
    return [line for line in stripped if line]


setup(
    name="rlhf",
    version="0.1.0",
    description="Reinforcement learning from human feedback with Ray, vLLM and DeepSpeed, from a laptop to a cluster",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    package_dir={"": "."},  # an editable install is then one line of a .pth file: no import hook in every process
    packages=find_packages(include=["rlhf", "rlhf.*", "actors", "actors.*", "launch", "launch.*"]),
    package_data={
        "actors": ["keep_agent.sh"],
        "launch.plan": ["public.json"],
        "launch.report": ["*.jinja", "report.js", "report.css"],
        "launch.feedback": ["templates/*.jinja", "static/*"],
    },
    extras_require={name: pins(name) for name in ("cpu", "gpu", "dev", "lm-eval")},
    entry_points={
        "console_scripts": ["rlhf = launch.cli:main"],
        "vllm.general_plugins": ["rlhf_shared_memory = rlhf.weights.shared_memory:register"],
    },
)
