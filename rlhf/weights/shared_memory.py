"""Weight transfer between processes without a GPU: a backend for vLLM's weight-transfer API.

vLLM provides NCCL and CUDA IPC; this backend implements the same protocol over files in memory, in a few large chunks
per transfer. For an engine on another host, the caller sends the content and opens it there as a ``local_copy``. The
backend is registered through the entry point group ``vllm.general_plugins``, so that engine workers know it too.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
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

NAME = "shared_memory"
CHUNK_BYTES = 256 * 2**20
"""Size from which on a chunk is sent; a larger tensor forms a chunk by itself. Two chunks exist at a time."""


class MemoryFile:
    """A file without a place in any folder, which other processes of this host open through this one's descriptor.

    Its memory stays until it is closed, or its process ends, however it ends. Content that replaces other content is
    written to the same pages: the kernel clears those of a new file first, and a virtual machine may have to get them
    from its host. In ``/dev/shm`` a container often has only 64 MiB.
    """

    def __init__(self) -> None:
        self.name = f"rlhf-weights-{secrets.token_hex(8)}"
        # Not buffered: what a failed write had left would be written before the next content.
        self._file = os.fdopen(os.memfd_create(self.name), "wb", buffering=0)

    @property
    def path(self) -> str:
        """Path by which other processes open it."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    def write(self, parts: Iterable[NDArray[np.uint8]]) -> None:
        """Replace its content by these bytes, end to end."""
        self._file.seek(0)
        for part in parts:
            rest = part.data
            while len(rest):
                rest = rest[self._file.write(rest) :]
        self._file.truncate()

    def close(self) -> None:
        """Release its memory."""
        self._file.close()


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """Initialisation data of the receiver: none."""


@dataclass
class SharedMemoryTrainerInit(TrainerInitInfo):
    """Initialisation data of the trainer: its rank."""

    backend: ClassVar[str] = NAME


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """One chunk: a ``MemoryFile`` and the tensors in it, end to end. ``dtypes`` are torch's, such as ``float32``."""

    path: str
    file: str
    """Its name, which no other file has."""
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
    _files: tuple[MemoryFile, MemoryFile]
    """For a chunk that is written, and the one before, which engines load."""

    @classmethod
    def trainer_init(
        cls, init_info: SharedMemoryTrainerInit, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        """Create the sender, and prepare the engines to receive."""
        sender = cls(client=client, source=source, is_sender=init_info.is_sender)
        sender._files = (MemoryFile(), MemoryFile())
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
        files, sent = cycle(self._files), Future[None]()
        sent.set_result(None)
        with ThreadPoolExecutor(1) as calls:
            for chunk in _chunks(self.source):
                update = write_chunk(next(files), chunk)
                sent.result()
                sent = calls.submit(self.client.update_weights, asdict(update))
        sent.result()
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        """Release the memory of the chunks."""
        for file in self._files:
            file.close()


@contextmanager
def local_copy(update: Mapping[str, Any], content: np.ndarray) -> Iterator[dict[str, Any]]:
    """Context in which a chunk from another host exists as a file on this host; yields its update.

    Args:
        update: the chunk's ``SharedMemoryUpdate`` as a dictionary.
        content: (bytes,) content of its file, uint8.
    """
    with closing(MemoryFile()) as file:
        file.write([content])
        yield {**update, "path": file.path, "file": file.name}


def is_here(update: Mapping[str, Any]) -> bool:
    """Whether the chunk's file is one of this host, given its ``SharedMemoryUpdate`` as a dictionary.

    On another host, or in another container, the same path may lead to nothing, or to another file.
    """
    try:
        return os.readlink(update["path"]).startswith(f"/memfd:{update['file']} ")
    except OSError:
        return False


def _chunks(source: WeightSource) -> Iterator[list[tuple[str, Tensor]]]:
    chunk: list[tuple[str, Tensor]] = []
    for name, tensor in source:
        if chunk and tensor.nbytes >= CHUNK_BYTES:
            yield chunk
            chunk = []
        chunk.append((name, tensor))
        if sum(t.nbytes for _, t in chunk) >= CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def write_chunk(file: MemoryFile, tensors: list[tuple[str, Tensor]]) -> SharedMemoryUpdate:
    """Write tensors to a file, end to end, and return the chunk's description."""
    file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for _, tensor in tensors)
    return SharedMemoryUpdate(
        path=file.path,
        file=file.name,
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
