"""Memory of a run's processes: measured by each process, summed by role."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.recovery.facts import rss_bytes
from rlhf.recovery.member import role_of

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class ActorMemory:
    """Memory of one actor, in GiB."""

    host: float
    """Resident host memory of its process and its children."""
    peak: float | None
    """Peak of GPU memory if the process computes on a GPU, else of host memory; None if unknown."""


def memory_here(children: Sequence[int] = ()) -> ActorMemory:
    """Measure this process and its ``children``, whose GPU memory is not visible here."""
    import torch  # a slow import that the controller does not need

    processes = [os.getpid(), *children]
    host = sum(rss_bytes(process) or 0 for process in processes) / GIB
    if torch.cuda.is_initialized():
        return ActorMemory(host=host, peak=torch.cuda.max_memory_allocated() / GIB)
    if torch.cuda.is_available():  # only the children may compute on the GPU
        return ActorMemory(host=host, peak=None)
    return ActorMemory(host=host, peak=sum(map(_peak_bytes, processes)) / GIB)


def _peak_bytes(process: int) -> int:
    """Peak host memory of a process, which psutil does not report on Linux; 0 if it cannot be read."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def by_role(found: Mapping[str, ActorMemory]) -> dict[str, float]:
    """Metrics by role: ``memory/<role>_host_gib``, the sum over actors, and ``memory/<role>_gib``, their largest peak.

    Args:
        found: memory by actor's name, such as ``policy rank 0``.
    """
    host: defaultdict[str, float] = defaultdict(float)
    peak: dict[str, float] = {}
    for name, memory in found.items():
        role = re.sub(r"\W+", "_", role_of(name))
        host[role] += memory.host
        if memory.peak is not None:
            peak[role] = max(peak.get(role, 0.0), memory.peak)
    return {f"memory/{role}_host_gib": value for role, value in host.items()} | {
        f"memory/{role}_gib": value for role, value in peak.items()
    }
