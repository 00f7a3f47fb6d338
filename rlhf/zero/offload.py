"""Offloads a network's weights and training state to host memory between phases, and reloads them.

Works on storages: a storage is copied to the host and resized to 0, later resized back and filled. All tensors that
view it, DeepSpeed's flat buffers included, remain the same objects and are restored bit for bit, so that no knowledge
of DeepSpeed's state is needed. DeepSpeed's ``offload_states`` supports neither stage 0 nor frozen networks, and under
ZeRO-3 no optimizer but its fused Adam.

Nothing here is collective: each rank offloads its own state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.device import host_buffer, wait_for_device
from rlhf.placement.pools import Part

CHUNK = 2**26
"""Bytes that are page-locked at a time; a power of two, because PyTorch rounds up to one."""
SMALL = 1024
"""Storages up to this many bytes stay on the device: flags and counters, which may be read at any time."""
LIBRARIES = ("deepspeed.", "torch.optim.", "bitsandbytes.")
"""Modules whose objects are searched for tensors."""

Stored = tuple[torch.UntypedStorage, int]
"""A storage and its size in bytes before offloading."""


class Offloader:
    """Offloads the two parts of one network: its weights, and the states that ``optimizers`` hold for training it."""

    def __init__(self, network: nn.Module, device: torch.device, *optimizers: object) -> None:
        self._network, self._device, self._optimizers = network, device, optimizers
        changes = bool(optimizers)
        self._buffers: dict[Part, HostBuffer] = {
            "weights": HostBuffer(device, changes),
            "states": HostBuffer(device, changes),
        }

    def offload(self, part: Part) -> None:
        """Move a part to host memory, unless it is offloaded already."""
        buffer = self._buffers[part]
        if not buffer.is_offloaded:
            scratch = set(self._storages(self._buckets()))
            found = self._storages(self._weights() if part == "weights" else self._states())
            held = [stored for address, stored in found.items() if address not in scratch]
            buffer.offload(held, [found[address] for address in scratch & found.keys()])

    def reload(self, *parts: Part) -> None:
        """Move those of the parts that are offloaded back to the device."""
        for part in parts:
            self._buffers[part].reload()

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Context in which offloaded tensors point to copies in ordinary host memory, without use of the device."""
        copies = {address: copy for buffer in self._buffers.values() for address, copy in buffer.copies()}
        offloaded = [tensor for tensor in self._all() if tensor.untyped_storage()._cdata in copies] if copies else []
        own = [tensor.data for tensor in offloaded]
        try:
            for tensor in offloaded:
                tensor.data = _view_like(tensor, copies[tensor.untyped_storage()._cdata])
            yield
        finally:
            for tensor, data in zip(offloaded, own, strict=True):
                tensor.data = data

    def _storages(self, tensors: Iterable[Tensor]) -> dict[int, Stored]:
        """The storages on the device that can be offloaded, by address: not small ones, nor those that PyTorch did not
        allocate (a mapped file)."""
        storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == self._device.type]
        return {
            storage._cdata: (storage, storage.nbytes())
            for storage in storages
            if storage.nbytes() > SMALL and storage.resizable()
        }

    def _weights(self) -> Iterator[Tensor]:
        yield from self._network.buffers()
        for parameter in self._network.parameters():
            yield parameter
            yield from find_tensors(getattr(parameter, "ds_tensor", None), getattr(parameter, "quant_state", None))

    def _states(self) -> list[Tensor]:
        weights = {tensor.untyped_storage()._cdata for tensor in self._weights()}
        return [tensor for tensor in self._all() if tensor.untyped_storage()._cdata not in weights]

    def _all(self) -> Iterator[Tensor]:
        return find_tensors(list(self._network.parameters()), list(self._network.buffers()), *self._optimizers)

    def _buckets(self) -> Iterator[Tensor]:
        """DeepSpeed's buffers for the reduction of gradients; between updates their content is not needed."""
        for optimizer in self._optimizers:
            yield from find_tensors(*(bucket.buffer for bucket in getattr(optimizer, "ipg_buckets", {}).values()))


class HostBuffer:
    """Host memory for one offloaded part; kept after a reload, because page-locking is slow.

    A part that never ``changes`` is copied to the host once; later calls only free its device memory.
    """

    def __init__(self, device: torch.device, changes: bool) -> None:
        self._device, self._changes = device, changes
        self._chunks: list[Tensor] = []
        self._held: list[Stored] = []
        """Storages that have a copy on the host."""
        self._scratch: list[Stored] = []
        """Offloaded storages without a copy."""
        self.is_offloaded = False

    def offload(self, held: list[Stored], scratch: list[Stored]) -> None:
        """Copy the storages ``held`` to the host, and free these and ``scratch``, whose content is lost."""
        if [storage._cdata for storage, _ in held] != [storage._cdata for storage, _ in self._held]:
            self._held = held
            for own, copy in self._pieces():
                copy.copy_(own, non_blocking=True)
        self._scratch, self.is_offloaded = scratch, True
        wait_for_device(self._device)  # all copies are complete, and no kernel still reads the storages
        for storage, _ in (*held, *scratch):
            storage.resize_(0)

    def reload(self) -> None:
        """Restore the storages on the device."""
        if not self.is_offloaded:
            return
        for storage, size in (*self._held, *self._scratch):
            storage.resize_(size)
        for own, copy in self._pieces():
            own.copy_(copy, non_blocking=True)
        wait_for_device(self._device)
        self.is_offloaded, self._scratch = False, []
        if self._changes:
            self._held = []  # otherwise this would keep storages alive that a load replaces

    def copies(self) -> Iterator[tuple[int, Tensor]]:
        """Address and content (bytes,) of each offloaded storage, each in a new tensor."""
        if self.is_offloaded:
            for (storage, _), pieces in zip(self._held, self._slices(), strict=True):
                yield storage._cdata, torch.cat(pieces)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each piece of a storage on the device, with the slice of the host memory that holds its copy."""
        for (storage, _), pieces in zip(self._held, self._slices(), strict=True):
            content = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            yield from zip(content.split([len(piece) for piece in pieces]), pieces, strict=True)

    def _slices(self) -> Iterator[Sequence[Tensor]]:
        """For each storage, the slices of host chunks that hold its copy; copies are stored end to end."""
        offset = 0
        for _, size in self._held:
            pieces = []
            end = offset + size
            while offset < end:
                chunk, start = divmod(offset, CHUNK)
                length = min(end - offset, CHUNK - start)
                pieces.append(self._chunk(chunk)[start : start + length])
                offset += length
            yield pieces

    def _chunk(self, number: int) -> Tensor:
        while len(self._chunks) <= number:
            self._chunks.append(host_buffer(self._device, CHUNK))
        return self._chunks[number]


def find_tensors(*roots: Any) -> Iterator[Tensor]:
    """Every tensor reachable through containers, gradients and attributes of tensors, and objects of ``LIBRARIES``."""
    seen: dict[int, Any] = {}
    pending = list(roots)
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item  # keeps the object alive, so that no other object gets its id
        if isinstance(item, Tensor):
            yield item
            pending += [item.grad] if item.is_leaf else []
            pending.append(item.__dict__)
        elif isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            pending += item
        elif f"{type(item).__module__}.".startswith(LIBRARIES):
            pending.append(getattr(item, "__dict__", None))


def _view_like(tensor: Tensor, content: Tensor) -> Tensor:
    """A view with the tensor's dtype, offset, shape and strides of a copy (bytes,) of its storage."""
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(content.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
