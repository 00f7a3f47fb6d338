"""Weight transfer between processes without a GPU: a backend for vLLM's weight-transfer API.

vLLM provides NCCL and CUDA IPC; this backend implements the same protocol over files in memory, in a few large chunks
per transfer. For an engine on another host, the caller sends the content and opens it there as a ``local_copy``. The
backend is registered through the entry point group ``vllm.general_plugins``, so that engine workers know it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
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

from rlhf.weights.memory_file import MemoryFile, is_open, mapped

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
    """One chunk: a ``MemoryFile`` and the tensors in it, end to end. ``dtypes`` are torch's, such as ``float32``."""

    path: str
    file: str
    """Its name, which no other file has."""
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors; the file can be longer."""
        return sum(_nbytes(dtype, shape) for dtype, shape in zip(self.dtypes, self.shapes, strict=True))


class SharedMemoryReceiver(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    """Receiver in the engine's worker: maps chunks and loads them through vLLM's layerwise reload.

    The reload repacks matrices for the CPU.
    """

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate
    _contents: dict[tuple[str, str], Tensor]
    """Memory of files that stay from update to update, by path and name."""

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        """Forget the files of the sender before; this backend needs no rendezvous."""
        self._contents = {}

    def start_weight_update(self) -> None:
        """Open a reload of the whole model."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Close the reload, which converts every layer back to its serving layout, and release closed files."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        self._release_closed()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one chunk; the base class would synchronise an accelerator, which does not exist here."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        """Load the tensors of a chunk."""
        place = update_info.path, update_info.file
        if (content := self._contents.get(place)) is None or len(content) < update_info.nbytes:
            self._release_closed()  # copies of chunks from another host: each is a file by itself
            content = self._contents[place] = mapped(update_info.path)
        self.model.load_weights(split_content(update_info, content))
        _copy_waiting(self.model, content)

    def shutdown(self) -> None:
        """Release the files."""
        self._contents = {}

    def _release_closed(self) -> None:
        self._contents = {place: content for place, content in self._contents.items() if is_open(*place)}


def _copy_waiting(model: nn.Module, content: Tensor) -> None:
    """Copy what vLLM keeps of a chunk until its layer is complete: the sender writes the file again before that."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    begin = content.data_ptr()
    places = range(begin, begin + len(content))

    def copy(tensor: Tensor) -> Tensor:
        return tensor.clone() if not tensor.is_meta and tensor.data_ptr() in places else tensor

    for layer in model.modules():
        for _, given in get_layerwise_info(layer).loaded_weights:
            given.arguments.update(tree_map_only(Tensor, copy, dict(given.arguments)))


class SharedMemorySender(TrainerWeightTransferEngine[SharedMemoryTrainerInit]):
    """Sender on every trainer rank.

    All ranks iterate over the source, because gathering a ZeRO-3 tensor is collective; rank 0 writes the chunks and
    calls the engines, which prepare while the first chunk is gathered and written, and load one while the next one is.
    """

    init_info_cls = SharedMemoryTrainerInit
    _files: tuple[MemoryFile, ...] = ()
    """For a chunk that is written, and the one before, which engines load; none except on rank 0."""

    @classmethod
    def trainer_init(
        cls, init_info: SharedMemoryTrainerInit, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        """Create the sender, and prepare the engines to receive."""
        sender = cls(client=client, source=source, is_sender=init_info.is_sender)
        if sender.is_sender:
            sender._files = (MemoryFile(), MemoryFile())
            client.init_weight_transfer_engine({})
        return sender

    def send_weights(self) -> None:
        """Send all weights: start an update, send the chunks, finish the update."""
        assert self.source is not None
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        files = cycle(self._files)
        with ThreadPoolExecutor(1) as calls:
            sent = calls.submit(self.client.start_weight_update)
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


def chunk_content(update: Mapping[str, Any]) -> NDArray[np.uint8]:
    """(bytes,) content of the chunk's file, given its ``SharedMemoryUpdate`` as a dictionary."""
    content: NDArray[np.uint8] = mapped(update["path"])[: SharedMemoryUpdate(**update).nbytes].numpy()
    return content


def is_here(update: Mapping[str, Any]) -> bool:
    """Whether the chunk's file is one of this host, given its ``SharedMemoryUpdate`` as a dictionary.

    On another host, or in another container, the same path may lead to nothing, or to another file.
    """
    return is_open(update["path"], update["file"])


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
    file.write([tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for _, tensor in tensors])
    return SharedMemoryUpdate(
        path=file.path,
        file=file.name,
        names=[name for name, _ in tensors],
        dtypes=[str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        shapes=[list(tensor.shape) for _, tensor in tensors],
    )


def split_content(update: SharedMemoryUpdate, content: Tensor) -> list[tuple[str, Tensor]]:
    """The tensors of a chunk, as views of its content where alignment allows."""
    tensors, offset = [], 0
    for name, dtype_name, shape in zip(update.names, update.dtypes, update.shapes, strict=True):
        dtype, size = getattr(torch, dtype_name), _nbytes(dtype_name, shape)
        piece = content[offset : offset + size]
        tensors.append((name, (piece if offset % dtype.itemsize == 0 else piece.clone()).view(dtype).view(shape)))
        offset += size
    return tensors


def _nbytes(dtype_name: str, shape: Sequence[int]) -> int:
    dtype: torch.dtype = getattr(torch, dtype_name)
    return math.prod(shape) * dtype.itemsize


def register() -> None:
    """Register the backend with vLLM in this process; vLLM calls this through the entry point."""
    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, SharedMemoryReceiver)
    if NAME not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine(NAME, SharedMemorySender)
