"""The trainer's side of a publish, for every backend."""

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


class TimedClient(VLLMWeightSyncClient, Protocol):
    """What tells the engines of an update, in ``seconds`` a call. ``left_out`` are those that it lost: place → how."""

    seconds: float
    left_out: dict[int, str]


def make_sender(
    backend: str,
    rank: int,
    engine_workers: int,
    client: VLLMWeightSyncClient,
    source: WeightSource,
    address: str,
    port: int,
) -> TrainerWeightTransferEngine:
    """Meet the engines and return what sends to them (on every trainer rank; rank 0 sends).

    Args:
        backend: ``shared_memory``, ``ipc`` or ``nccl``.
        engine_workers: vLLM workers over all engines.
        address, port: where NCCL meets; unused by the others.
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
        return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=_largest(source))
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    return NCCLTrainerInitInfo(
        rank=rank, master_address=address, master_port=port, world_size=1 + engine_workers, packed=True
    )


def _largest(source: WeightSource) -> int:
    """Bytes of a buffer for CUDA IPC, in which each tensor has to fit: embeddings are larger than vLLM's own choice."""
    sizes = (math.prod(meta.shape) * meta.dtype.itemsize for meta in source.metadata())
    return max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, *sizes)
