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
from rlhf.errors import LostError, first_line

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

IS_TCP, IS_FILE = "tcp://", "file://"
SHOWN = 8
"""Missing ranks that a message names."""


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
    """Longest time that a collective call waits for another rank."""
    rendezvous_seconds: float = 600.0
    """Longest wait for the other ranks at the rendezvous."""
    ranks_key: str = "ranks"
    """Key of the recipe with the number of ranks, for messages."""

    def late(self, reason: str) -> LostError:
        """The error of a rendezvous that is not complete in time."""
        return LostError(
            f"the rendezvous of {self.ranks_key} = {self.world} at {self.rendezvous} failed: {reason}. Look at the "
            "other ranks' logs in the run's logs/; between nodes, all ports must be open; if the processes only start "
            "slowly, raise placement.start_timeout_seconds",
            kind="failed",
        )


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
        wait_for_workers=False,  # ``meet`` waits, and names those that are missing
    )


def meet(rank: Rank) -> Store:
    """Connect to the rendezvous, and wait there for all ranks (collective).

    Raises:
        LostError: it cannot be reached, or ranks did not come in time; the message names them.
    """
    from torch.distributed import FileStore

    seconds = rank.rendezvous_seconds
    try:
        if rank.rendezvous.startswith(IS_TCP):
            store: Store = connect_store(rank.rendezvous, rank.rank, rank.world, seconds)
        else:
            store = FileStore(rank.rendezvous.removeprefix(IS_FILE), rank.world)
        store.set(_arrived(rank.rank), "")
    except (OSError, RuntimeError) as error:
        raise rank.late(f"rank {rank.rank} cannot connect to it: {first_line(error)}") from error
    try:
        store.wait([_arrived(other) for other in range(rank.world)], timedelta(seconds=seconds))
    except RuntimeError as error:
        missing = [str(other) for other in range(rank.world) if not _has_arrived(store, other)]
        shown = f"{', '.join(missing[:SHOWN])}{' and others' if len(missing) > SHOWN else ''}"
        raise rank.late(f"after {seconds:.0f} s there is no sign of rank {shown}") from error
    return store


def _arrived(rank: int) -> str:
    return f"rank {rank} has arrived"


def _has_arrived(store: Store, rank: int) -> bool:
    try:
        return bool(store.check([_arrived(rank)]))
    except RuntimeError:  # the rank that serves the store has ended
        return False


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
    if not torch.distributed.is_initialized():
        store = meet(rank)
        store.set_timeout(timeout)
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
