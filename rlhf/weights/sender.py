"""The trainer's side of a weight transfer, for every backend."""

from __future__ import annotations

import math
import os
from typing import Protocol

from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from rlhf.weights import shared_memory
from rlhf.weights.adapter import AdapterWeights


class TimedClient(VLLMWeightSyncClient, Protocol):
    """Client that calls the engines during a transfer, with a timeout."""

    seconds: float
    """Timeout of each call."""
    left_out: dict[int, str]
    """Kind of failure of engines that failed, by index: ``died``, ``stalled`` or ``failed``."""

    def load_adapter(self, adapter: AdapterWeights) -> None:
        """Have every engine replace its adapter."""


def make_sender(
    backend: str,
    rank: int,
    engine_workers: int,
    client: VLLMWeightSyncClient,
    source: WeightSource,
    address: str,
    port: int,
) -> TrainerWeightTransferEngine:
    """Connect to the engines and return the sender of weights (on every trainer rank; rank 0 sends).

    Args:
        backend: ``shared_memory``, ``ipc`` or ``nccl``.
        engine_workers: number of vLLM workers over all engines.
        address, port: NCCL's rendezvous address; unused by the other backends.
    """
    shared_memory.register()
    return WeightTransferTrainerFactory.trainer_init(
        _init_info(backend, rank, engine_workers, address, port, source), client=client, source=source
    )


def _init_info(
    backend: str, rank: int, engine_workers: int, address: str, port: int, source: WeightSource
) -> TrainerInitInfo:
    if backend == shared_memory.NAME:
        return shared_memory.SharedMemoryTrainerInit(rank=rank)
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=_buffer_size(source))
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    return NCCLTrainerInitInfo(
        rank=rank, master_address=address, master_port=port, world_size=1 + engine_workers, packed=True
    )


def _buffer_size(source: WeightSource) -> int:
    """Size in bytes of the CUDA IPC buffer, which must hold any tensor; embeddings can exceed vLLM's default."""
    sizes = (math.prod(meta.shape) * meta.dtype.itemsize for meta in source.metadata())
    return max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, *sizes)
