"""The trainer's side of a weight transfer, for every backend."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from rlhf.weights import shared_memory
from rlhf.weights.timed_client import TimedClient

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo


def make_sender(
    backend: str,
    rank: int,
    engine_workers: int,
    client: TimedClient,
    source: WeightSource,
    address: str,
    port: int,
) -> TrainerWeightTransferEngine[Any]:
    """Connect to the engines and return the sender of weights (on every trainer rank; rank 0 sends).

    Args:
        backend: ``shared_memory``, ``ipc`` or ``nccl``.
        engine_workers: number of vLLM workers over all engines.
        address, port: NCCL's rendezvous address; unused by the other backends.
    """
    if backend == "nccl":
        from rlhf.weights.nccl import NCCLSender

        group = _nccl_info(rank, engine_workers, address, port)
        return NCCLSender.trainer_init(group, client=client, source=source)
    shared_memory.register()
    return WeightTransferTrainerFactory.trainer_init(_init_info(backend, rank, source), client=client, source=source)


def _init_info(backend: str, rank: int, source: WeightSource) -> TrainerInitInfo:
    if backend == shared_memory.NAME:
        return shared_memory.SharedMemoryTrainerInit(rank=rank)
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=_buffer_size(source))


def _nccl_info(rank: int, engine_workers: int, address: str, port: int) -> NCCLTrainerInitInfo:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    return NCCLTrainerInitInfo(
        rank=rank, master_address=address, master_port=port, world_size=1 + engine_workers, packed=True
    )


def _buffer_size(source: WeightSource) -> int:
    """Size in bytes of the CUDA IPC buffer, which must hold any tensor; embeddings can exceed vLLM's default."""
    sizes = (math.prod(meta.shape) * meta.dtype.itemsize for meta in source.metadata())
    return max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, *sizes)
