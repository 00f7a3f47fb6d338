"""A process's rank within its role."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.device import Device


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Rank ``rank`` of the ``world`` processes of a role."""

    rank: int
    world: int
    meeting: str
    """Rendezvous URL for torch.distributed: ``file:///path`` of a new file on one host, or ``tcp://address:port``
    across hosts. TCP does not authenticate."""
    device: Device
    threads: int
    timeout_seconds: float
