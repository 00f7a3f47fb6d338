"""Joins the process group of a role, and seeds its processes."""

from __future__ import annotations

import os
from datetime import timedelta

import deepspeed
import numpy as np
import torch
from transformers import set_seed

from rlhf import device as devices
from rlhf.zero.meeting import IS_TCP, meet
from rlhf.zero.rank import Rank


def seed_process(seed: int, rank: int) -> None:
    """Seed all random number generators of this process with a seed that differs between ranks."""
    set_seed(int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]))


def join(rank: Rank) -> torch.device:
    """Join the process group (collective) and return this rank's device."""
    device = devices.prepare_process(rank.device, rank.threads)
    # On CPUs DeepSpeed would compile a C++ reduction at start-up, which takes half a minute and needs a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.update(
        RANK=str(rank.rank), WORLD_SIZE=str(rank.world), LOCAL_RANK="0", LOCAL_SIZE="1", DS_BUILD_OPS="0"
    )  # fmt: skip
    backend, timeout = devices.collective_backend(rank.device), timedelta(seconds=rank.timeout_seconds)
    if rank.meeting.startswith(IS_TCP):
        store = meet(rank.meeting, rank.rank, rank.world, rank.timeout_seconds)
        torch.distributed.init_process_group(
            backend, store=store, rank=rank.rank, world_size=rank.world, timeout=timeout
        )
    deepspeed.init_distributed(  # uses the existing group
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
        init_method=rank.meeting,
        rank=rank.rank,
        world_size=rank.world,
    )
    return device
