"""Where ranks on several hosts find each other."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import Store, TCPStore

IS_TCP = "tcp://"


def meet(meeting: str, rank: int, world: int, seconds: float) -> Store:
    """The store at ``tcp://address:port`` in which ranks find each other; rank 0 keeps it.

    It listens on that address alone: made from the URL by torch itself, it would listen on every interface.

    Args:
        seconds: the longest wait for others.
    """
    address, _, port = meeting.removeprefix(IS_TCP).rpartition(":")
    keeps = rank == 0
    return TCPStore(
        address,
        int(port),
        world,
        is_master=keeps,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=socket.create_server((address, int(port))).detach() if keeps else None,
    )
