"""GPUs and driver, from the output of ``nvidia-smi``, for which a stub program is on the PATH."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.doctor.gpus import GPU, GPUs, check_driver, check_gpus, gather, parse

H100 = GPU(name="NVIDIA H100 80GB HBM3", memory=81559 * 2**20, used=4 * 2**20, mode="Default")
GOOD = GPUs(gpus=(H100,) * 8, driver="580.95.05", devices=8, cuda="13.0")
LINES = (
    "NVIDIA H100 80GB HBM3, 81559, 4, Default, 580.95.05\nNVIDIA A100-SXM4-40GB, 40960, 0, Exclusive_Process, 580.95\n"
)


def test_what_nvidia_smi_prints() -> None:
    gpus, driver = parse(LINES)
    a100 = GPU(name="NVIDIA A100-SXM4-40GB", memory=40960 * 2**20, used=0, mode="Exclusive_Process")
    assert (gpus, driver) == ((H100, a100), "580.95.05")
    assert parse("") == ((), "")


def test_eight_good_ones() -> None:
    found = check_gpus(GOOD, ray_counts=8)
    assert (found.status, found.found) == ("ok", "8 × NVIDIA H100 80GB HBM3, 79.6 GiB each")


def test_no_gpu_is_no_fault() -> None:
    assert check_gpus(GPUs()).status == "not applicable"
    assert check_driver(GPUs()).status == "not applicable"


busy = replace(H100, used=40 * 2**30)


@pytest.mark.parametrize(
    ("facts", "ray_counts", "status", "said"),
    [
        (GPUs(devices=8, problem="NVIDIA-SMI has failed"), None, "failed", "NVIDIA-SMI has failed"),
        (GPUs(devices=8), None, "failed", "8 device files, and nvidia-smi lists no GPU"),
        (GOOD, 4, "failed", "Ray counts 4"),
        (replace(GOOD, gpus=(replace(H100, mode="Exclusive_Process"),)), None, "failed", "compute mode Exclusive"),
        (replace(GOOD, gpus=(H100, busy)), None, "warning", "in use: GPU 1: 40.0 GiB"),
        (replace(GOOD, gpus=(H100, replace(H100, name="L4"))), None, "warning", "1 × L4"),
        (replace(GOOD, gpus=(H100,)), None, "warning", "8 device files"),
    ],
)
def test_bad_ones(facts: GPUs, ray_counts: int | None, status: str, said: str) -> None:
    found = check_gpus(facts, ray_counts)
    assert found.status == status and said in found.found and found.fix


@pytest.mark.parametrize(
    ("driver", "cuda", "status"),
    [
        ("580.65.06", "13.0", "ok"),
        ("575.57.08", "13.0", "failed"),
        ("525.60.13", "12.8", "ok"),
        ("470.1", "12.1", "failed"),
        ("580.1", "", "failed"),
        ("580.1", "14.0", "warning"),
        ("[N/A]", "13.0", "warning"),
    ],
)
def test_the_driver_is_new_enough_for_pytorch(driver: str, cuda: str, status: str) -> None:
    assert check_driver(replace(GOOD, driver=driver, cuda=cuda)).status == status


def stand_in(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_gathered_from_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, f"printf '{LINES}'", monkeypatch)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    found = gather(tmp_path)
    assert (len(found.gpus), found.devices, found.driver, found.problem) == (2, 2, "580.95.05", "")


def test_a_driver_that_does_not_answer_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", monkeypatch)
    found = gather(tmp_path)
    assert found.problem == "Failed to initialize NVML: Driver/library version mismatch"
    assert check_gpus(found).status == "failed"
