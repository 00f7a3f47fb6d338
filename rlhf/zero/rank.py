"""A process's place among the ranks of its role."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.device import Device


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process's place in its role's group: ``rank`` of ``world``."""

    rank: int
    world: int
    meeting: str
    """Where the ranks meet, a URL that torch.distributed knows: ``file:///path`` of a new file on one host, or
    ``tcp://address:port`` between hosts. The latter asks nobody who they are."""
    device: Device
    threads: int
    timeout_seconds: float
