"""Process groups: a process's rank within its role, the ranks' rendezvous, and joining the group.

PyTorch is imported inside the functions, because the controller and its tests use ``Rank`` alone.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from rlhf import device as devices
from rlhf.device import Device

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

IS_TCP = "tcp://"


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Rank ``rank`` of the ``world`` processes of a role."""

    rank: int
    world: int
    rendezvous: str
    """Rendezvous URL for torch.distributed: ``file:///path`` of a new file on one host, or ``tcp://address:port``
    across hosts. TCP does not authenticate."""
    device: Device
    threads: int
    timeout_seconds: float


def connect_store(rendezvous: str, rank: int, world: int, seconds: float) -> Store:
    """Connect to the rendezvous store at ``tcp://address:port``, which rank 0 serves.

    The store listens on this address only; a store that torch creates from the URL listens on all interfaces.

    Args:
        seconds: timeout for the other ranks.
    """
    from torch.distributed import TCPStore

    address, _, port = rendezvous.removeprefix(IS_TCP).rpartition(":")
    is_server = rank == 0
    return TCPStore(
        address,
        int(port),
        world,
        is_master=is_server,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=socket.create_server((address, int(port))).detach() if is_server else None,
    )


def seed_process(seed: int, rank: int) -> None:
    """Seed all random number generators of this process with a seed that differs between ranks."""
    from transformers import set_seed

    set_seed(int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]))


def join(rank: Rank) -> torch.device:
    """Join the process group (collective) and return this rank's device."""
    import deepspeed
    import torch

    device = devices.prepare_process(rank.device, rank.threads)
    # On CPUs DeepSpeed would compile a C++ reduction at start-up, which takes half a minute and needs a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.update(
        RANK=str(rank.rank), WORLD_SIZE=str(rank.world), LOCAL_RANK="0", LOCAL_SIZE="1", DS_BUILD_OPS="0"
    )  # fmt: skip
    backend, timeout = devices.collective_backend(rank.device), timedelta(seconds=rank.timeout_seconds)
    if rank.rendezvous.startswith(IS_TCP):
        store = connect_store(rank.rendezvous, rank.rank, rank.world, rank.timeout_seconds)
        torch.distributed.init_process_group(
            backend, store=store, rank=rank.rank, world_size=rank.world, timeout=timeout
        )
    deepspeed.init_distributed(  # uses the existing group
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
        init_method=rank.rendezvous,
        rank=rank.rank,
        world_size=rank.world,
    )
    return device
