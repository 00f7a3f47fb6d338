"""What a network holds, moved to the host's memory between phases and back.

It is moved storage by storage: a storage is emptied where it is, and filled again. Every tensor in it, DeepSpeed's flat
buffers and their views included, stays the object that it was and comes back bit for bit; so nothing has to know how
DeepSpeed keeps its state. DeepSpeed's own ``offload_states`` knows neither stage 0 nor frozen networks, and under
ZeRO-3 no optimizer but its fused Adam.

Nothing here is collective: each rank moves its own.
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
"""Bytes that are page-locked at a time: a power of two, since that is what PyTorch rounds to."""
SMALL = 1024
"""Storages of at most so many bytes stay: flags and counters, which may be read at any time."""
LIBRARIES = ("deepspeed.", "torch.optim.", "bitsandbytes.")
"""Whose objects are looked into for tensors."""

Stored = tuple[torch.UntypedStorage, int]
"""A storage, and its bytes when it is filled."""


class Parking:
    """Moves the two parts of one network. ``optimizers`` are what holds the rest of a network that trains."""

    def __init__(self, network: nn.Module, device: torch.device, *optimizers: object) -> None:
        self._network, self._device, self._optimizers = network, device, optimizers
        changes = bool(optimizers)
        self._lots: dict[Part, Lot] = {"weights": Lot(device, changes), "states": Lot(device, changes)}

    def leave(self, part: Part) -> None:
        """Move a part to the host's memory. One that is there already stays there."""
        lot = self._lots[part]
        if not lot.away:
            scratch = set(self._storages(self._buckets()))
            found = self._storages(self._weights() if part == "weights" else self._states())
            held = [stored for address, stored in found.items() if address not in scratch]
            lot.leave(held, [found[address] for address in scratch & found.keys()])

    def come_back(self, *parts: Part) -> None:
        """Move parts back to the device, where they are away."""
        for part in parts:
            self._lots[part].come_back()

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Within the block what is away can be read in ordinary host memory; the device is not used for it."""
        copies = {address: copy for lot in self._lots.values() for address, copy in lot.copies()}
        reached = [tensor for tensor in self._all() if tensor.untyped_storage()._cdata in copies] if copies else []
        own = [tensor.data for tensor in reached]
        try:
            for tensor in reached:
                tensor.data = _as_in(copies[tensor.untyped_storage()._cdata], tensor)
            yield
        finally:
            for tensor, data in zip(reached, own, strict=True):
                tensor.data = data

    def _storages(self, tensors: Iterable[Tensor]) -> dict[int, Stored]:
        """The storages of tensors on the device, by address; small ones, and those that are no memory of PyTorch's own
        (a mapped file), stay where they are."""
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
            yield from found_in(getattr(parameter, "ds_tensor", None), getattr(parameter, "quant_state", None))

    def _states(self) -> list[Tensor]:
        weights = {tensor.untyped_storage()._cdata for tensor in self._weights()}
        return [tensor for tensor in self._all() if tensor.untyped_storage()._cdata not in weights]

    def _all(self) -> Iterator[Tensor]:
        return found_in(list(self._network.parameters()), list(self._network.buffers()), *self._optimizers)

    def _buckets(self) -> Iterator[Tensor]:
        """Where DeepSpeed puts gradients to reduce them: between updates there is nothing in them."""
        for optimizer in self._optimizers:
            yield from found_in(*(bucket.buffer for bucket in getattr(optimizer, "ipg_buckets", {}).values()))


class Lot:
    """Room on the host for one part. It is kept when the part comes back: page-locking takes its time.

    What never ``changes`` is copied here once, and afterwards only emptied there.
    """

    def __init__(self, device: torch.device, changes: bool) -> None:
        self._device, self._changes = device, changes
        self._chunks: list[Tensor] = []
        self._held: list[Stored] = []
        """What has a copy here."""
        self._scratch: list[Stored] = []
        """What needs none."""
        self.away = False

    def leave(self, held: list[Stored], scratch: list[Stored]) -> None:
        """Take storages in; of ``scratch`` the content is lost."""
        if [storage._cdata for storage, _ in held] != [storage._cdata for storage, _ in self._held]:
            self._held = held
            for own, here in self._pieces():
                here.copy_(own, non_blocking=True)
        self._scratch, self.away = scratch, True
        wait_for_device(self._device)  # everything is here, and nobody reads it there any more
        for storage, _ in (*held, *scratch):
            storage.resize_(0)

    def come_back(self) -> None:
        """Fill the storages again."""
        if not self.away:
            return
        for storage, size in (*self._held, *self._scratch):
            storage.resize_(size)
        for own, here in self._pieces():
            own.copy_(here, non_blocking=True)
        wait_for_device(self._device)
        self.away, self._scratch = False, []
        if self._changes:
            self._held = []  # what takes a storage's place meanwhile, in a load, shall not find it kept from here

    def copies(self) -> Iterator[tuple[int, Tensor]]:
        """Address and content (bytes,) of each storage that is here, each in a tensor of its own."""
        if self.away:
            for (storage, _), pieces in zip(self._held, self._places(), strict=True):
                yield storage._cdata, torch.cat(pieces)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each part of a filled storage, and where it lies here."""
        for (storage, _), pieces in zip(self._held, self._places(), strict=True):
            content = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            yield from zip(content.split([len(piece) for piece in pieces]), pieces, strict=True)

    def _places(self) -> Iterator[Sequence[Tensor]]:
        """Where each storage lies here: end to end, over one chunk or several."""
        at = 0
        for _, size in self._held:
            pieces = []
            end = at + size
            while at < end:
                chunk, start = divmod(at, CHUNK)
                length = min(end - at, CHUNK - start)
                pieces.append(self._chunk(chunk)[start : start + length])
                at += length
            yield pieces

    def _chunk(self, number: int) -> Tensor:
        while len(self._chunks) <= number:
            self._chunks.append(host_buffer(self._device, CHUNK))
        return self._chunks[number]


def found_in(*roots: Any) -> Iterator[Tensor]:
    """Every tensor that is reached through containers, tensors' gradients and attributes, and objects of
    ``LIBRARIES``."""
    seen: dict[int, Any] = {}
    waiting = list(roots)
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each  # kept, so that no other object gets its id
        if isinstance(each, Tensor):
            yield each
            waiting += [each.grad] if each.is_leaf else []
            waiting.append(each.__dict__)
        elif isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple, set, frozenset)):
            waiting += each
        elif f"{type(each).__module__}.".startswith(LIBRARIES):
            waiting.append(getattr(each, "__dict__", None))


def _as_in(content: Tensor, tensor: Tensor) -> Tensor:
    """The tensor as it lies in a copy (bytes,) of its storage."""
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(content.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
