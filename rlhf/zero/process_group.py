"""How the ranks of one role find each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import deepspeed
import torch

from rlhf import device as devices


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process's place in its role's group: ``rank`` of ``world``, meeting at ``address:port``."""

    rank: int
    world: int
    address: str
    port: int
    device: devices.Device
    threads: int
    timeout_seconds: float


def join(rank: Rank) -> torch.device:
    """Join the group (collective) and return where this rank's tensors live."""
    place = devices.prepare_process(rank.device, rank.threads)
    # Without this DeepSpeed compiles a C++ reduction at start-up on CPUs: half a minute, and a compiler on every node.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.update(
        RANK=str(rank.rank), WORLD_SIZE=str(rank.world), LOCAL_RANK="0", LOCAL_SIZE="1",
        MASTER_ADDR=rank.address, MASTER_PORT=str(rank.port), DS_BUILD_OPS="0",
    )  # fmt: skip
    deepspeed.init_distributed(
        dist_backend=devices.collective_backend(rank.device),
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=rank.timeout_seconds),
        init_method=f"tcp://{rank.address}:{rank.port}",
        rank=rank.rank,
        world_size=rank.world,
    )
    return place
