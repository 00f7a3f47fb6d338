"""Weight transfer between processes without a GPU: a backend for vLLM's weight-transfer API.

vLLM provides NCCL and CUDA IPC; this backend implements the same protocol over files in shared memory, in a few large
chunks per transfer. For an engine on another host, the caller sends the content and opens it there as a ``local_copy``.
The backend is registered through the entry point group ``vllm.general_plugins``, so that engine workers know it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
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

from rlhf.recovery.leftovers import temporary_file
from rlhf.storage.write_errors import writing

NAME = "shared_memory"
CHUNK_BYTES = 256 * 2**20
"""Size from which on a chunk is sent; a larger tensor forms a chunk by itself. Two chunks exist at a time."""


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """Initialisation data of the receiver: none."""


@dataclass
class SharedMemoryTrainerInit(TrainerInitInfo):
    """Initialisation data of the trainer: its rank."""

    backend: ClassVar[str] = NAME


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """One chunk: a file and the tensors in it, end to end. ``dtypes`` are torch's names, such as ``float32``."""

    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class SharedMemoryReceiver(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    """Receiver in the engine's worker: reads chunks and loads them through vLLM's layerwise reload.

    The reload repacks matrices for the CPU.
    """

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        """Do nothing: this backend needs no rendezvous."""

    def start_weight_update(self) -> None:
        """Open a reload of the whole model."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Close the reload, which converts every layer back to its serving layout."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one chunk; the base class would synchronise an accelerator, which does not exist here."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        """Load the tensors of a chunk."""
        self.model.load_weights(read_chunk(update_info))

    def shutdown(self) -> None:
        """Do nothing: no resources are held between updates."""


class SharedMemorySender(TrainerWeightTransferEngine[SharedMemoryTrainerInit]):
    """Sender on every trainer rank.

    All ranks iterate over the source, because gathering a ZeRO-3 tensor is collective; rank 0 writes the chunks and
    calls the engines, which load a chunk while the next one is gathered and written.
    """

    init_info_cls = SharedMemoryTrainerInit

    @classmethod
    def trainer_init(
        cls, init_info: SharedMemoryTrainerInit, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        """Create the sender, and prepare the engines to receive."""
        sender = cls(client=client, source=source, is_sender=init_info.is_sender)
        if sender.is_sender:
            client.init_weight_transfer_engine({})
        return sender

    def send_weights(self) -> None:
        """Send all weights: start an update, send the chunks, finish the update."""
        assert self.source is not None
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        self.client.start_weight_update()
        sent: Future[None] | None = None
        with ExitStack() as files, ThreadPoolExecutor(1) as calls:
            for chunk in _chunks(self.source):
                size = sum(tensor.nbytes for _, tensor in chunk)
                # Closed by the stack if the chunk before fails, else as soon as the engines have it.
                file = ExitStack()
                files.push(file)
                update = write_chunk(file.enter_context(temporary_file("weights", size)), chunk)
                if sent is not None:
                    sent.result()
                sent = calls.submit(self._send_chunk, file, update)
        if sent is not None:
            sent.result()
        self.client.finish_weight_update()

    def _send_chunk(self, file: AbstractContextManager[Any], update: SharedMemoryUpdate) -> None:
        """Have the engines load a chunk, and remove its file."""
        with file:
            self.client.update_weights(asdict(update))


@contextmanager
def local_copy(update: Mapping[str, Any], content: np.ndarray) -> Iterator[dict[str, Any]]:
    """Context in which a chunk from another host exists as a file on this host; yields its update.

    Args:
        update: the chunk's ``SharedMemoryUpdate`` as a dictionary.
        content: (bytes,) content of its file, uint8.
    """
    with temporary_file("weights", content.nbytes) as path:
        content.tofile(path)
        yield {**update, "path": str(path)}


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
    """Write tensors to a file, end to end, and return the chunk's description."""
    with writing(path), path.open("wb") as file:
        for _, tensor in tensors:
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return SharedMemoryUpdate(
        path=str(path),
        names=[name for name, _ in tensors],
        dtypes=[str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        shapes=[list(tensor.shape) for _, tensor in tensors],
    )


def read_chunk(update: SharedMemoryUpdate) -> list[tuple[str, Tensor]]:
    """Read the tensors of a chunk, as views of one copy of the file where alignment allows."""
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
    """Register the backend with vLLM in this process; vLLM calls this through the entry point."""
    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, SharedMemoryReceiver)
    if NAME not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine(NAME, SharedMemorySender)
