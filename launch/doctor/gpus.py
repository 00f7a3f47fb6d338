"""Checks of GPUs and their driver, through ``nvidia-smi`` and without starting CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from launch.doctor.findings import GIB, Finding, failed, gib, not_applicable, ok, warning

COLUMNS = "name,memory.total,memory.used,compute_mode,driver_version"
SECONDS = 30.0
"""Timeout of ``nvidia-smi``: without persistence mode, the driver has to load first."""
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""CUDA's major version → oldest compatible driver (NVIDIA, CUDA Compatibility, "minor version compatibility")."""
USED = GIB
"""Memory in use that is normal on an idle GPU."""
EXCLUSIVE = ("Exclusive_Process", "Exclusive_Thread", "Prohibited")
"""Compute modes that allow only one process on a GPU, or none."""


@dataclass(frozen=True, kw_only=True)
class GPU:
    """One GPU."""

    name: str
    memory: int
    """Bytes."""
    used: int
    """Bytes in use by processes."""
    mode: str
    """Compute mode: ``Default`` allows several processes."""


@dataclass(frozen=True, kw_only=True)
class GPUs:
    """The GPUs of a node, and the CUDA version of its PyTorch."""

    gpus: tuple[GPU, ...] = ()
    driver: str = ""
    devices: int = 0
    """Number of GPU device files, which exist if hardware and kernel module are present."""
    problem: str = ""
    """Error of ``nvidia-smi``, if it returned no GPUs."""
    cuda: str = ""
    """CUDA version of PyTorch; empty for a CPU build."""


def gather(dev: Path = Path("/dev")) -> GPUs:
    """Gather the GPUs of this machine."""
    devices = len([path for path in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
    cuda = _cuda_of_torch()
    if shutil.which("nvidia-smi") is None:
        return GPUs(devices=devices, problem="nvidia-smi is not on the PATH" if devices else "", cuda=cuda)
    command = ["nvidia-smi", f"--query-gpu={COLUMNS}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr).strip().splitlines()
        return GPUs(
            devices=devices, problem=output[0] if output else f"nvidia-smi ended with {done.returncode}", cuda=cuda
        )
    gpus, driver = parse(done.stdout)
    return GPUs(gpus=gpus, driver=driver, devices=devices, cuda=cuda)


def parse(csv: str) -> tuple[tuple[GPU, ...], str]:
    """Parse the output of ``nvidia-smi`` for ``COLUMNS``, memory in MiB; returns GPUs and driver."""
    rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines() if line.strip()]
    gpus = tuple(GPU(name=row[0], memory=_mib(row[1]), used=_mib(row[2]), mode=row[3]) for row in rows)
    return gpus, rows[0][4] if rows else ""


def _mib(cell: str) -> int:
    return int(cell) * 2**20 if cell.isdigit() else 0


def _cuda_of_torch() -> str:
    """PyTorch's CUDA version, read from its file because importing it takes seconds."""
    try:
        text = Path(str(metadata.distribution("torch").locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        return ""
    found = re.search(r"^cuda\b.*= '([\d.]+)'", text, flags=re.MULTILINE)
    return found[1] if found else ""


def check_gpus(facts: GPUs, ray_counts: int | None = None) -> Finding:
    """Check that all GPUs answer, are of one kind, free, and can be shared by processes.

    Args:
        ray_counts: GPUs that Ray offers on this node; None if no Ray runs.
    """
    if not facts.gpus:
        return _no_gpu_finding(facts)
    count, described = len(facts.gpus), _describe(facts.gpus)
    if ray_counts is not None and ray_counts != count:
        return failed(f"{described}, and Ray counts {ray_counts}", f"start Ray here with --num-gpus={count}")
    exclusive = [gpu.mode for gpu in facts.gpus if gpu.mode in EXCLUSIVE]
    if exclusive:
        return failed(f"{described}, compute mode {exclusive[0]}: roles cannot share one", "nvidia-smi -c DEFAULT")
    taken = [f"GPU {index}: {gib(gpu.used)}" for index, gpu in enumerate(facts.gpus) if gpu.used > USED]
    if taken:
        return warning(f"{described}; in use: {', '.join(taken)}", "`nvidia-smi` shows by whom; end it, or wait")
    if len({gpu.name for gpu in facts.gpus}) > 1:
        return warning(described, "plans assume equal GPUs: give Ray only those of one kind")
    if facts.devices > count:
        fix = "correct if a scheduler lends only some of them; else see `dmesg` for Xid, and reboot"
        return warning(f"{described}; {facts.devices} device files", fix)
    return ok(described)


def _no_gpu_finding(facts: GPUs) -> Finding:
    if facts.problem or facts.devices:
        fix = "install or reload NVIDIA's driver; in a container, start it with --gpus all"
        return failed(facts.problem or f"{facts.devices} device files, and nvidia-smi lists no GPU", fix)
    return not_applicable("no NVIDIA GPU: roles are CPU processes")


def _describe(gpus: tuple[GPU, ...]) -> str:
    kinds = Counter((gpu.name, gpu.memory) for gpu in gpus)
    return ", ".join(f"{count} × {name}, {gib(memory)} each" for (name, memory), count in kinds.items())


def check_driver(facts: GPUs) -> Finding:
    """Check that the driver is new enough for the CUDA version of PyTorch."""
    if not facts.gpus:
        return not_applicable("no NVIDIA GPU")
    if not facts.cuda:
        return failed(f"driver {facts.driver}, and a PyTorch without CUDA", "make ENV=gpu, on this node")
    least = LEAST_DRIVER.get(int(facts.cuda.split(".")[0]))
    found = f"driver {facts.driver}, PyTorch for CUDA {facts.cuda}"
    if least is None:
        return warning(found, "no oldest driver is known for this CUDA; see NVIDIA's CUDA Compatibility")
    major = facts.driver.split(".")[0]
    if not major.isdigit():
        return warning(found, "nvidia-smi did not report the driver's version")
    return ok(found) if int(major) >= least else failed(found, f"install driver {least} or newer")
