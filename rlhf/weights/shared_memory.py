"""Weight transfer between processes without a GPU: a backend for vLLM's weight-transfer API.

vLLM offers NCCL and CUDA IPC; this is the same protocol over a file in shared memory, a few large chunks a publish.
An engine on another host does not find the file: whoever calls it brings the content, as a ``local_copy`` there.
Registered through the entry point group ``vllm.general_plugins``, so that the engine's own worker process knows it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from rlhf.recovery.leftovers import prefix, roomy_folder

NAME = "shared_memory"
CHUNK_BYTES = 512 * 2**20
"""Size at which a chunk is handed over; a larger tensor has a chunk of its own."""


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """Nothing needs to be agreed on beforehand."""


@dataclass
class SharedMemoryTrainerInit(TrainerInitInfo):
    """The trainer's side: only its rank."""

    backend: ClassVar[str] = NAME


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """One chunk: a file and the tensors in it, one after another. ``dtypes`` are torch's names, as in ``float32``."""

    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class SharedMemoryReceiver(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    """In the engine's worker: reads chunks and loads them through vLLM's layerwise reload.

    The reload repacks for the CPU.
    """

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        """No rendezvous is needed."""

    def start_weight_update(self) -> None:
        """Open a reload of the whole model."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Close the reload: every layer is in its serving layout again."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one chunk. The base class would wait for an accelerator, which is not there."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        """Load the tensors of a chunk."""
        self.model.load_weights(read_chunk(update_info))

    def shutdown(self) -> None:
        """Nothing is held between updates."""


class SharedMemorySender(TrainerWeightTransferEngine[SharedMemoryTrainerInit]):
    """On every trainer rank.

    All iterate the source, since gathering a ZeRO-3 tensor takes all; rank 0 writes and calls.
    """

    init_info_cls = SharedMemoryTrainerInit

    @classmethod
    def trainer_init(
        cls, init_info: SharedMemoryTrainerInit, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        """A sender whose engines are ready to receive."""
        sender = cls(client=client, source=source, is_sender=init_info.is_sender)
        if sender.is_sender:
            client.init_weight_transfer_engine({})
        return sender

    def send_weights(self) -> None:
        """One whole update: start, a few chunks, finish."""
        assert self.source is not None
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        self.client.start_weight_update()
        for chunk in _chunks(self.source):
            size = sum(tensor.nbytes for _, tensor in chunk)
            with tempfile.NamedTemporaryFile(dir=roomy_folder(size), prefix=prefix("weights")) as file:
                self.client.update_weights(asdict(write_chunk(Path(file.name), chunk)))
        self.client.finish_weight_update()


@contextmanager
def local_copy(update: Mapping[str, Any], content: np.ndarray) -> Iterator[dict[str, Any]]:
    """A chunk of another host, within the block as a file of this one.

    Args:
        update: the chunk's ``SharedMemoryUpdate`` as a dictionary.
        content: (bytes,) what is in its file, uint8.
    """
    with tempfile.NamedTemporaryFile(dir=roomy_folder(content.nbytes), prefix=prefix("weights")) as file:
        content.tofile(file.name)
        yield {**update, "path": file.name}


def _chunks(source: WeightSource) -> Iterator[list[tuple[str, Tensor]]]:
    chunk: list[tuple[str, Tensor]] = []
    for name, tensor in source:
        chunk.append((name, tensor))
        if sum(t.nbytes for _, t in chunk) >= CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def write_chunk(path: Path, tensors: list[tuple[str, Tensor]]) -> SharedMemoryUpdate:
    """Write tensors to a file, one after another, and say what is in it."""
    with path.open("wb") as file:
        for _, tensor in tensors:
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return SharedMemoryUpdate(
        path=str(path),
        names=[name for name, _ in tensors],
        dtypes=[str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        shapes=[list(tensor.shape) for _, tensor in tensors],
    )


def read_chunk(update: SharedMemoryUpdate) -> list[tuple[str, Tensor]]:
    """The tensors of a chunk, as views of one copy of the file."""
    data = torch.from_numpy(np.fromfile(update.path, dtype=np.uint8))
    tensors, offset = [], 0
    for name, dtype_name, shape in zip(update.names, update.dtypes, update.shapes, strict=True):
        dtype = getattr(torch, dtype_name)
        size = int(np.prod(shape)) * dtype.itemsize
        piece = data[offset : offset + size]
        tensors.append((name, (piece if offset % dtype.itemsize == 0 else piece.clone()).view(dtype).view(shape)))
        offset += size
    return tensors


def register() -> None:
    """Make the backend known to vLLM in this process; called by vLLM itself through the entry point."""
    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, SharedMemoryReceiver)
    if NAME not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine(NAME, SharedMemorySender)
