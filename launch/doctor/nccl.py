"""Checks of NCCL: its version, and all-reduces over the GPUs of a node and over nodes."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from launch.doctor import gpus
from launch.doctor.all_reduce import AllReducePlan, AllReduceResult, run_apart
from launch.doctor.findings import Fault, Finding, failed, not_applicable, ok, warning

PACKAGES = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
SECONDS = 120.0
"""Deadline of the all-reduce: CUDA starts on each GPU, and NCCL detects every link."""
GB = 10**9


@dataclass(frozen=True, kw_only=True)
class NCCL:
    """NCCL on a node."""

    package: str = ""
    """Installed version; empty without one."""
    gpus: int = 0
    outcome: AllReduceResult | Fault | None = None
    """Result of the all-reduce over the node's GPUs; None if it was not run."""
    are_busy: bool = False
    """Whether other processes use a GPU's memory: an all-reduce could take theirs, and is not run."""


def gather() -> NCCL:
    """Gather NCCL's version and, with GPUs, the outcome of a short all-reduce over all of this node's."""
    found, package = gpus.gather().gpus, _package()
    count, are_busy = len(found), any(gpu.used > gpus.USED for gpu in found)
    if not count or not package or are_busy:
        return NCCL(package=package, gpus=count, are_busy=are_busy)
    rendezvous = Path(tempfile.gettempdir()) / f"rlhf-{uuid.uuid4().hex}"
    try:
        outcome = run_apart(AllReducePlan(local=count, rendezvous=f"file://{rendezvous}"), SECONDS)
    finally:
        rendezvous.unlink(missing_ok=True)
    return NCCL(package=package, gpus=count, outcome=outcome)


def _package() -> str:
    for name in PACKAGES:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def check_nccl(facts: NCCL) -> Finding:
    """Check that NCCL is installed and sums correctly over the GPUs of the node."""
    if not facts.gpus:
        return not_applicable("no NVIDIA GPU: ranks talk through gloo")
    if not facts.package:
        return failed(f"{facts.gpus} GPUs, and no NCCL is installed", "make ENV=gpu, on this node")
    if facts.are_busy:
        fix = "run `rlhf doctor` again when they are free"
        return warning(f"NCCL {facts.package}, {facts.gpus} GPUs, some in use: all-reduce skipped", fix)
    if not isinstance(facts.outcome, AllReduceResult):
        reason = facts.outcome.reason if facts.outcome else "the all-reduce was not run"
        return failed(f"NCCL {facts.package}, {facts.gpus} GPUs: {reason}", _fix("on this node"))
    return ok(_describe(facts.outcome, facts.package))


def check_across(outcomes: Sequence[AllReduceResult | Fault]) -> Finding:
    """Check that NCCL sums correctly over nodes, with one GPU of each.

    Args:
        outcomes: of the nodes whose own GPUs sum correctly, the first one's first; empty for fewer than two.
    """
    if not outcomes:
        return not_applicable("fewer than two nodes have GPUs that sum correctly on their own")
    faults = [outcome.reason for outcome in outcomes if isinstance(outcome, Fault)]
    if faults or not isinstance(outcomes[0], AllReduceResult):
        fix = _fix("on every node, with NCCL_SOCKET_IFNAME naming the interface that joins them")
        return failed(f"{len(faults)} of {len(outcomes)} nodes: {faults[0]}", fix)
    return ok(_describe(outcomes[0], outcomes[0].version))


def _describe(outcome: AllReduceResult, version: str) -> str:
    if outcome.ranks == 1:
        return f"NCCL {version} starts; there is one GPU to sum over"
    return f"NCCL {version}: a sum over {outcome.ranks} GPUs is right, {outcome.bandwidth / GB:.1f} GB/s"


def _fix(where: str) -> str:
    return f"run `rlhf doctor` with NCCL_DEBUG=INFO {where}; see the rows of /dev/shm, driver and ports"
