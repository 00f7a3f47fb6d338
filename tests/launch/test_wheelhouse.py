"""A wheelhouse is built on one machine, and an environment from it on one without a network.

The scripts are the real ones, on a project with a few small packages. Wheels are packed from the installed packages;
empty stubs replace packages of several gigabytes, with DeepSpeed's as a source package, as in reality.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from launch.files import STAYS_HERE

ROOT = Path(__file__).parents[2]
REAL = ("setuptools", "wheel", "tenacity", "iniconfig", "uv")
MODULES = [
    "datasets",
    "matplotlib.pyplot",
    "ray",
    "scipy.stats",
    "torch._inductor.compile_fx",
    "transformers.models.llama.modeling_llama",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.llm_engine",
    "wandb",
]
"""Packages that the set-up imports to check the environment."""
NO_NETWORK = ["unshare", "--net"]


def can_unshare() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*NO_NETWORK, "true"], check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,  # makes environments
    pytest.mark.skipif(not can_unshare(), reason="the kernel does not let us make a network namespace"),
]


def installed() -> list[str]:
    """Packages of ``REAL`` that are installed; without uv the set-up uses pip."""
    names = []
    for name in REAL:
        try:
            distribution(name)
        except ModuleNotFoundError:
            continue
        names.append(name)
    return names


def pack(name: str, folder: Path) -> None:
    """Pack a wheel of an installed package."""
    package = distribution(name)
    info = next(file.parent.name for file in package.files or () if file.name == "RECORD")
    stem = info.removesuffix(".dist-info")
    tag = next(
        line.split(": ")[1] for line in (package.read_text("WHEEL") or "").splitlines() if line.startswith("Tag")
    )
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as wheel:
        for file in package.files or ():
            if file.suffix != ".pyc":
                inside = f"{stem}.data/scripts/{file.name}" if ".." in file.parts else str(file)
                wheel.write(str(file.locate()), inside)


def stand_in(name: str, modules: list[str], folder: Path, begin: str = "") -> None:
    """A source package with empty modules."""
    source = folder / f"{name}-0.1"
    for module in modules:
        path = source.joinpath(*module.split("."))
        path.mkdir(parents=True)
        for parent in [path, *path.parents[: len(module.split(".")) - 1]]:
            (parent / "__init__.py").touch()
    setup = (
        f"from setuptools import find_packages, setup\nsetup(name={name!r}, version='0.1', packages=find_packages())"
    )
    (source / "setup.py").write_text(f"{begin}\n{setup}\n")
    with tarfile.open(folder / f"{name}-0.1.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    shutil.rmtree(source)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's code with few requirements."""
    folder = tmp_path_factory.mktemp("connected") / "project"
    for name in ("rlhf", "actors", "launch"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", folder)
    (folder / "runs").mkdir()
    (folder / "runs" / "mine.txt").write_text("mine")
    (folder / "requirements").mkdir()
    pins = [f"{name}=={version(name)}\n" for name in installed()]
    (folder / "requirements/build.txt").write_text("".join(pin for pin in pins if not pin.startswith(("ten", "ini"))))
    (folder / "requirements/cpu.txt").write_text(f"torch==0.1\ndeepspeed==0.1\ntenacity=={version('tenacity')}\n")
    (folder / "requirements/gpu.txt").touch()
    (folder / "requirements/dev.txt").write_text(f"iniconfig=={version('iniconfig')}\n")
    return folder


@pytest.fixture(scope="module")
def wheelhouse(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of ``wheelhouse.sh``, with a folder as package index."""
    index, made = tmp_path_factory.mktemp("index"), project / "packed" / "wheels"
    for name in installed():
        pack(name, index)
    stand_in("torch", MODULES, index)
    stand_in("deepspeed", ["deepspeed"], index, begin="import torch")
    environment = {**os.environ, "VENV": sys.prefix, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    command = ["project/launch/wheelhouse.sh", "cpu", "project/packed/wheels"]
    done = subprocess.run(command, cwd=project.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.fixture
def unpacked(wheelhouse: Path, tmp_path: Path) -> Path:
    """The project on a machine without a network."""
    folder = tmp_path / "rlhf"
    folder.mkdir()
    subprocess.run(["tar", "-xzf", wheelhouse / "rlhf.tar.gz", "-C", folder], check=True)
    return folder


def set_up(folder: Path, wheelhouse: Path) -> subprocess.CompletedProcess[str]:
    """Run ``setup_env.sh`` in a network namespace without even a loopback."""
    command = [*NO_NETWORK, "launch/setup_env.sh", "cpu", ".venv", sys._base_executable]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "VIRTUAL_ENV"))}
    environment = {**kept, "WHEELHOUSE": str(wheelhouse)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_holds_every_pin_as_a_wheel_and_the_project_without_its_runs(wheelhouse: Path, unpacked: Path) -> None:
    wheels = {file.name.partition("-")[0] for file in wheelhouse.glob("*.whl")}
    assert wheels == {"torch", "deepspeed", *installed()}
    assert not list(wheelhouse.glob("*0.1.tar.gz")), "DeepSpeed is built here, not there"
    names = {"rlhf", "actors", "launch", "setup.py", "requirements", "packed"}
    assert {path.name for path in unpacked.iterdir()} == names
    assert list((unpacked / "packed").iterdir()) == []
    assert (unpacked / "rlhf/data/formats.py").exists(), "a package of the name of a folder that stays here"
    assert "data" in STAYS_HERE


def test_an_environment_is_made_from_it_without_a_network(wheelhouse: Path, unpacked: Path) -> None:
    done = set_up(unpacked, wheelhouse)
    assert done.returncode == 0, done.stdout + done.stderr
    listing = "import importlib.metadata as m; print(sorted(d.name for d in m.distributions()))"
    python = unpacked / ".venv/bin/python"
    names = subprocess.run([python, "-c", listing], capture_output=True, text=True, check=True).stdout
    assert all(repr(name) in names for name in ("torch", "deepspeed", "rlhf", *installed()))
    assert (unpacked / ".venv/bin/rlhf").exists()
    again = set_up(unpacked, wheelhouse)
    assert (again.returncode, again.stdout) == (0, ""), "it is there already"


def test_a_wheelhouse_that_was_damaged_on_its_way_is_refused(wheelhouse: Path, unpacked: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(wheelhouse, damaged)
    wheel = next(damaged.glob("tenacity*"))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    done = set_up(unpacked, damaged)
    assert done.returncode == 2
    assert f"{wheel.name}: FAILED" in done.stderr
    assert not (unpacked / ".venv/bin").exists()


def test_a_folder_that_is_none_is_refused(unpacked: Path, tmp_path: Path) -> None:
    done = set_up(unpacked, tmp_path)
    assert done.returncode == 2
    assert "is no wheelhouse" in done.stderr
    assert "fix: launch/wheelhouse.sh cpu" in done.stderr
