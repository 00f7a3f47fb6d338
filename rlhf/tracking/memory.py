"""What the processes of a run hold, told by each of itself and added up by role."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.recovery.facts import PROC, rss_bytes
from rlhf.recovery.member import role_of

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one actor, in GiB."""

    host: float
    """What its process, and those that it started, hold of the host's."""
    peak: float | None
    """The most that it has held: of the GPU's where it computes there, else of the host's. None is unknown."""


def memory_here(children: Sequence[int] = (), proc: Path = PROC) -> Memory:
    """Of this process and its ``children``. What these hold of a GPU cannot be seen from here."""
    import torch  # whoever only adds up need not wait for it

    processes = [os.getpid(), *children]
    host = sum(rss_bytes(process, proc) or 0 for process in processes) / GIB
    if torch.cuda.is_initialized():
        return Memory(host=host, peak=torch.cuda.max_memory_allocated() / GIB)
    if torch.cuda.is_available():  # its children compute there, or nobody
        return Memory(host=host, peak=None)
    return Memory(host=host, peak=sum(_peak_bytes(process, proc) for process in processes) / GIB)


def _peak_bytes(process: int, proc: Path) -> int:
    """The most that a process has held of the host's; 0 where that cannot be read."""
    try:
        status = (proc / str(process) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def by_role(found: Mapping[str, Memory]) -> dict[str, float]:
    """``memory/<role>_host_gib``, of all its actors together, and ``memory/<role>_gib``, of that which held most.

    Args:
        found: by the actor's name, such as ``policy rank 0``.
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
