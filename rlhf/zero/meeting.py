"""Rendezvous of ranks on several hosts."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import Store, TCPStore

IS_TCP = "tcp://"


def meet(meeting: str, rank: int, world: int, seconds: float) -> Store:
    """Connect to the rendezvous store at ``tcp://address:port``, which rank 0 serves.

    The store listens on this address only; a store that torch creates from the URL listens on all interfaces.

    Args:
        seconds: timeout for the other ranks.
    """
    address, _, port = meeting.removeprefix(IS_TCP).rpartition(":")
    is_server = rank == 0
    return TCPStore(
        address,
        int(port),
        world,
        is_master=is_server,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=socket.create_server((address, int(port))).detach() if is_server else None,
    )
