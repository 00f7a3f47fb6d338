"""NCCL: which version, and whether it adds up over the GPUs of a node, and over nodes."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from launch.doctor import gpus
from launch.doctor.all_reduce import AllReducePlan, Outcome, run_apart
from launch.doctor.findings import Fault, Finding, failed, not_applicable, ok, warning

PACKAGES = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
SECONDS = 120.0
"""How long the all-reduce may take: CUDA starts on each GPU, and NCCL looks for every link."""
GB = 10**9


@dataclass(frozen=True, kw_only=True)
class NCCL:
    """NCCL on a node."""

    package: str = ""
    """Version that is installed; empty where none is."""
    gpus: int = 0
    outcome: Outcome | Fault | None = None
    """Of the all-reduce over the node's GPUs; ``None`` where none was made."""
    are_busy: bool = False
    """Other processes hold memory of a GPU: an all-reduce could cost them theirs, and is not made."""


def gather() -> NCCL:
    """NCCL's version and, where there are GPUs, a short all-reduce over all of this node's."""
    found, package = gpus.gather().gpus, _package()
    count, are_busy = len(found), any(gpu.used > gpus.USED for gpu in found)
    if not count or not package or are_busy:
        return NCCL(package=package, gpus=count, are_busy=are_busy)
    meeting = Path(tempfile.gettempdir()) / f"rlhf-{uuid.uuid4().hex}"
    try:
        outcome = run_apart(AllReducePlan(local=count, meeting=f"file://{meeting}"), SECONDS)
    finally:
        meeting.unlink(missing_ok=True)
    return NCCL(package=package, gpus=count, outcome=outcome)


def _package() -> str:
    for name in PACKAGES:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def check_nccl(facts: NCCL) -> Finding:
    """NCCL is there and sums right over the GPUs of the node."""
    if not facts.gpus:
        return not_applicable("no NVIDIA GPU: ranks talk through gloo")
    if not facts.package:
        return failed(f"{facts.gpus} GPUs, and no NCCL is installed", "make ENV=gpu, on this node")
    if facts.are_busy:
        fix = "run `rlhf doctor` again when they are free"
        return warning(f"NCCL {facts.package}, {facts.gpus} GPUs, some in use: no all-reduce was made", fix)
    if not isinstance(facts.outcome, Outcome):
        reason = facts.outcome.reason if facts.outcome else "the all-reduce was not made"
        return failed(f"NCCL {facts.package}, {facts.gpus} GPUs: {reason}", _fix("on this node"))
    return ok(_told(facts.outcome, facts.package))


def check_across(outcomes: Sequence[Outcome | Fault]) -> Finding:
    """NCCL sums right over nodes, one GPU of each.

    Args:
        outcomes: of the nodes whose own GPUs sum right, the first one's first; empty where there are fewer than two.
    """
    if not outcomes:
        return not_applicable("fewer than two nodes have GPUs that sum right by themselves")
    faults = [outcome.reason for outcome in outcomes if isinstance(outcome, Fault)]
    if faults or not isinstance(outcomes[0], Outcome):
        fix = _fix("on every node, with NCCL_SOCKET_IFNAME naming the interface that joins them")
        return failed(f"{len(faults)} of {len(outcomes)} nodes: {faults[0]}", fix)
    return ok(_told(outcomes[0], outcomes[0].version))


def _told(outcome: Outcome, version: str) -> str:
    if outcome.ranks == 1:
        return f"NCCL {version} starts; there is one GPU to sum over"
    return f"NCCL {version}: a sum over {outcome.ranks} GPUs is right, {outcome.bandwidth / GB:.1f} GB/s"


def _fix(where: str) -> str:
    return f"run `rlhf doctor` with NCCL_DEBUG=INFO {where}; see the rows of /dev/shm, driver and ports"
