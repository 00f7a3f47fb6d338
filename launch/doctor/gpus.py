"""GPUs and their driver, as ``nvidia-smi`` tells: no CUDA is started for it."""

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
"""How long ``nvidia-smi`` may take: a driver without persistence mode loads first."""
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""CUDA's major version → oldest driver that runs it (NVIDIA, CUDA Compatibility, "minor version compatibility")."""
USED = GIB
"""Memory in use on an idle GPU that is no cause for a question."""
EXCLUSIVE = ("Exclusive_Process", "Exclusive_Thread", "Prohibited")
"""Compute modes in which a second process gets no place on a GPU."""


@dataclass(frozen=True, kw_only=True)
class GPU:
    """One GPU."""

    name: str
    memory: int
    """Bytes."""
    used: int
    """Bytes that processes hold now."""
    mode: str
    """Compute mode: ``Default`` lets several processes compute on it."""


@dataclass(frozen=True, kw_only=True)
class GPUs:
    """The GPUs of a node, and what its PyTorch was built for."""

    gpus: tuple[GPU, ...] = ()
    driver: str = ""
    devices: int = 0
    """Device files of GPUs: the hardware and its kernel module are there."""
    problem: str = ""
    """What ``nvidia-smi`` said instead of an answer."""
    cuda: str = ""
    """CUDA version that PyTorch was built for; empty for a build for CPUs."""


def gather(dev: Path = Path("/dev")) -> GPUs:
    """The GPUs of this machine."""
    devices = len([path for path in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
    cuda = _cuda_of_torch()
    if shutil.which("nvidia-smi") is None:
        return GPUs(devices=devices, problem="nvidia-smi is not on the PATH" if devices else "", cuda=cuda)
    command = ["nvidia-smi", f"--query-gpu={COLUMNS}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        return GPUs(devices=devices, problem=said[0] if said else f"nvidia-smi ended with {done.returncode}", cuda=cuda)
    gpus, driver = parse(done.stdout)
    return GPUs(gpus=gpus, driver=driver, devices=devices, cuda=cuda)


def parse(csv: str) -> tuple[tuple[GPU, ...], str]:
    """GPUs and driver from the lines of ``nvidia-smi`` for ``COLUMNS``, memory in MiB."""
    rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines() if line.strip()]
    gpus = tuple(GPU(name=row[0], memory=_mib(row[1]), used=_mib(row[2]), mode=row[3]) for row in rows)
    return gpus, rows[0][4] if rows else ""


def _mib(cell: str) -> int:
    return int(cell) * 2**20 if cell.isdigit() else 0


def _cuda_of_torch() -> str:
    """PyTorch's CUDA version, from its file: to import it takes seconds."""
    try:
        text = Path(str(metadata.distribution("torch").locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        return ""
    found = re.search(r"^cuda\b.*= '([\d.]+)'", text, flags=re.MULTILINE)
    return found[1] if found else ""


def check_gpus(facts: GPUs, ray_counts: int | None = None) -> Finding:
    """All GPUs answer, are of one kind, free, and may be shared by processes.

    Args:
        ray_counts: GPUs that Ray gives out on this node; ``None`` where no Ray runs.
    """
    if not facts.gpus:
        return _without(facts)
    count, described = len(facts.gpus), _described(facts.gpus)
    if ray_counts is not None and ray_counts != count:
        return failed(f"{described}, and Ray counts {ray_counts}", f"start Ray here with --num-gpus={count}")
    exclusive = [gpu.mode for gpu in facts.gpus if gpu.mode in EXCLUSIVE]
    if exclusive:
        return failed(f"{described}, compute mode {exclusive[0]}: roles cannot share one", "nvidia-smi -c DEFAULT")
    taken = [f"GPU {index}: {gib(gpu.used)}" for index, gpu in enumerate(facts.gpus) if gpu.used > USED]
    if taken:
        return warning(f"{described}; in use: {', '.join(taken)}", "`nvidia-smi` shows by whom; end it, or wait")
    if len({gpu.name for gpu in facts.gpus}) > 1:
        return warning(described, "a plan counts with equal GPUs: give Ray only those of one kind")
    if facts.devices > count:
        fix = "right where a scheduler lends some of them; else see `dmesg` for Xid, and reboot"
        return warning(f"{described}; {facts.devices} device files", fix)
    return ok(described)


def _without(facts: GPUs) -> Finding:
    if facts.problem or facts.devices:
        fix = "install or reload NVIDIA's driver; in a container, start it with --gpus all"
        return failed(facts.problem or f"{facts.devices} device files, and nvidia-smi lists no GPU", fix)
    return not_applicable("no NVIDIA GPU: roles are CPU processes")


def _described(gpus: tuple[GPU, ...]) -> str:
    kinds = Counter((gpu.name, gpu.memory) for gpu in gpus)
    return ", ".join(f"{count} × {name}, {gib(memory)} each" for (name, memory), count in kinds.items())


def check_driver(facts: GPUs) -> Finding:
    """The driver is new enough for the CUDA that PyTorch was built for."""
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
        return warning(found, "nvidia-smi did not tell the driver's version")
    return ok(found) if int(major) >= least else failed(found, f"install driver {least} or newer")
