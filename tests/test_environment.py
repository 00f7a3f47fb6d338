"""What a clone must hold before any code of it runs: pins, targets, entry points, licence, cluster file."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
KIND = "cpu" if "+cpu" in version("torch") else "gpu"
OWN = {"rlhf", "actors", "launch", "examples", "benchmarks", "tests"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run in the repository, free of the options of a ``make`` that may have started these tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def normalised(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path, *, direct: bool = False) -> dict[str, str]:
    """Versions by name; with ``direct`` only those that the project itself imports or calls."""
    text = path.read_text(encoding="utf-8")
    lines = text.partition("# What those need.")[0].splitlines() if direct else text.splitlines()
    return {normalised(name): pin for name, _, pin in (line.partition("==") for line in lines) if pin}


def tracked(*patterns: str) -> list[str]:
    """Files under version control."""
    return run("git", "ls-files", *patterns).stdout.splitlines()


def imported_packages(path: Path) -> set[str]:
    """Top-level names of the absolute imports in a file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_once(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line)] == []
    assert len(pins(path)) == len(lines) > 0


def test_the_cpu_environment_names_the_cpu_build_of_torch() -> None:
    assert pins(ROOT / "requirements/cpu.txt")["torch"].endswith("+cpu")


def test_no_requirement_is_pinned_to_two_versions_within_one_environment() -> None:
    shared = [pins(ROOT / "requirements" / f"{name}.txt") for name in ("build", "dev")]
    for name in ("cpu", "gpu"):
        environment = pins(ROOT / "requirements" / f"{name}.txt")
        assert [package for other in shared for package in other if package in environment] == []


def test_direct_requirements_are_what_the_files_import() -> None:
    owners = packages_distributions()
    imported = {name for file in tracked("*.py") for name in imported_packages(ROOT / file)}
    foreign = imported - OWN - set(sys.stdlib_module_names)
    needed = {frozenset(map(normalised, owners.get(name, [name]))) for name in foreign}
    direct = {name for path in REQUIREMENTS for name in pins(path, direct=True)}
    assert [sorted(names) for names in needed if not names & direct] == []
    assert set(pins(ROOT / f"requirements/{KIND}.txt", direct=True)) <= {name for names in needed for name in names}


def test_every_direct_requirement_has_a_reason() -> None:
    reasons = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    direct = {name for path in REQUIREMENTS for name in pins(path, direct=True)}
    explained = {normalised(name) for name in re.findall(r"^\| `([^`]+)`", reasons, flags=re.MULTILINE)}
    assert explained == direct


def test_entry_points_lead_somewhere() -> None:
    points = {point.name: point for point in distribution("rlhf").entry_points}
    assert points["rlhf"].value == "launch.cli:main"
    assert points["rlhf_shared_memory"].group == "vllm.general_plugins"
    assert all(callable(point.load()) for point in points.values())


def test_quickstart_makes_environment_then_data_then_runs() -> None:
    lines = run("make", "-n", "quickstart", "ENV=cpu").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["launch/setup_env.sh", "cpu"],
        [".venv/bin/python", "-m"],
        [".venv/bin/rlhf", "pipeline"],
    ]


@pytest.mark.parametrize("target", ["test", "gpu-check", "compare", "demo", "lint", "env", "clean"])
def test_targets_exist(target: str) -> None:
    result = run("make", "-n", target, "ENV=cpu")
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize(
    ("kind", "python", "message"),
    [
        ("tpu", sys.executable, "no environment named 'tpu'"),
        ("cpu", "/no/such/python", "is not Python 3.11 or 3.12"),
        ("cpu", sys.executable, "is no virtual environment"),
    ],
)
def test_set_up_refuses_and_touches_nothing(tmp_path: Path, kind: str, python: str, message: str) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("mine", encoding="utf-8")
    result = run("launch/setup_env.sh", kind, str(tmp_path), python)
    assert result.returncode == 2
    assert message in result.stderr
    assert "fix:" in result.stderr
    assert list(tmp_path.iterdir()) == [letter]


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")


def test_licence_is_apache_2() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert re.match(r"\s*Apache License\s+Version 2\.0, January 2004", licence)
    assert "9. Accepting Warranty or Additional Liability." in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert distribution("rlhf").metadata["License"] == "Apache-2.0"


def test_nothing_names_one_particular_machine() -> None:
    # Written in pieces, so that this file does not find itself.
    places = [r"(?<![\w.~-])/" + name + r"\b" for name in ("work", "root", "home")]
    hosts = [name + r"\.org" for name in ("pypi", "pythonhosted", "npmjs", "debian")]
    forbidden = re.compile("|".join(places + hosts))
    found = []
    for name in tracked():
        text = (ROOT / name).read_bytes().decode("utf-8", errors="ignore")
        found += [f"{name}: {match.group()}" for match in forbidden.finditer(text)]
    assert tracked()
    assert found == []
