"""A network trained, or only run, by DeepSpeed on this rank and its peers.

The one normaliser lives here: ``update`` divides a sum over tokens (or pairs) by their global count, over ranks,
micro-batches and packing, so that no split of the work changes the gradient. DeepSpeed averages gradients over ranks;
the factor ``world`` undoes that. Ranks that share rows (``rlhf/models/shared_row.py``) each have the gradient of their
own places, which add up as those of other ranks do; but each of them has the whole loss, which ``all_reduce`` counts
once. Of ranks that share matrices (``rlhf/zero/tensor_parallel.py``) DeepSpeed averages over those with the same part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from transformers import get_scheduler
from transformers.integrations import HfDeepSpeedConfig

from rlhf.config.schema import OptimizerConfig, RoleConfig
from rlhf.device import release_cache
from rlhf.errors import MachineryError
from rlhf.models.lora import adapters, merged, parts, plain_tensors
from rlhf.placement.pools import Part
from rlhf.placement.shared_rows import row_ranks
from rlhf.weights.fingerprint import Fingerprint, fingerprint
from rlhf.zero import tensor_parallel
from rlhf.zero.parking import Parking
from rlhf.zero.rank import Rank
from rlhf.zero.settings import SCHEDULES, deepspeed_config, optimizer_arguments


def building(role: RoleConfig, dtype: str, rank: Rank) -> object | None:
    """Keep the result alive while a model is loaded: under ZeRO-3 it makes transformers load straight into shards."""
    return HfDeepSpeedConfig(deepspeed_config(role, dtype, rank.world)) if role.zero_stage == 3 else None


class ZeroEngine:
    """One network under DeepSpeed. Without an optimizer it is frozen. ``learning_rate`` is that of the last update, 0
    before the first.

    With an optimizer all parameters that require gradients are trained; the optimizer keeps nothing of the others.

    Every method but ``device``, ``rest`` and the counters is collective under ZeRO-3, and over ranks that share
    matrices: all ranks call it, the same number of times.

    What rests in the host's memory comes back by itself when it is used: nobody need know where it is.
    """

    def __init__(
        self,
        network: nn.Module,
        role: RoleConfig,
        dtype: str,
        rank: Rank,
        place: torch.device,
        optimizer: OptimizerConfig | None = None,
        total_updates: int = 0,
    ) -> None:
        self.rank, self.world, self.device, self.stage = rank.rank, rank.world, place, role.zero_stage
        self.network, self.dtype, self.learning_rate = network, dtype, 0.0
        self.row_ranks, self.split = row_ranks(role), role.tensor_parallel
        if role.zero_stage == 3:
            deepspeed.zero.Init(module=network, config_dict_or_path=deepspeed_config(role, dtype, rank.world))
            for parameter in network.parameters():
                _padding(parameter, rank.rank).zero_()
            for parameter in network.external_parameters():
                deepspeed.zero.register_external_parameter(network, parameter)
        if optimizer is None:
            network.requires_grad_(False)
            self.engine: Any = network.eval()
            if role.zero_stage == 3:
                self.engine = self._initialize(role)
            elif self.split > 1:
                self.engine = self._initialize(replace(role, zero_stage=0))  # nothing to shard without an optimizer
            else:
                network.to(place)
            self.parking = Parking(network, place)
            return
        network.train()  # gradient checkpointing works in training mode alone; dropout is off in both
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        adam = torch.optim.AdamW(trained, **optimizer_arguments(optimizer))
        schedule = get_scheduler(SCHEDULES[optimizer.schedule], adam, optimizer.warmup_steps, total_updates)
        if role.zero_stage < 3 and self.split == 1:
            network.to(place)
        self.engine = self._initialize(role, optimizer.max_grad_norm, optimizer=adam, lr_scheduler=schedule)
        self.parking = Parking(network, place, self.engine.optimizer, adam)

    def _initialize(self, role: RoleConfig, max_grad_norm: float = 0.0, **training: Any) -> Any:
        config = deepspeed_config(role, self.dtype, self.world, max_grad_norm)
        engine = deepspeed.initialize(model=self.network, config=config, **training)[0]
        if self.split > 1:
            engine.first_dataloader_check.remove()  # it compares rows by ==, which tensors in them have no answer to
        return engine

    def rest(self, parts: Sequence[Part]) -> None:
        """Move these to the host's memory until they are used, and free what the last phase left in PyTorch's cache."""
        for part in parts:
            self.parking.leave(part)
        release_cache(self.device)

    def forward(self, *arguments: Any) -> Any:
        """The network's output without gradients."""
        self.parking.come_back("weights")
        with torch.no_grad():
            return self.engine(*arguments)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What another function of the network's gives in place of its forward pass, under the same conditions."""
        self.network.forward = function
        try:
            return self.forward(*arguments)
        finally:
            del self.network.forward

    def update(self, micro_batches: Sequence[Any], loss: Callable[[Any], Tensor], count: int) -> float:
        """One optimizer step; returns the gradient's norm before clipping.

        Args:
            micro_batches: as many on every rank.
            loss: maps one to the *sum* of its losses, having called the network through ``self.engine``.
            count: what the sum over all ranks and micro-batches is divided by.
        """
        self.parking.come_back("weights", "states")
        for index, micro_batch in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            self.engine.backward(loss(micro_batch) * (self.world // self.split / max(1, count)))
        # Where nothing is sharded DeepSpeed may tell no norm; the gradients are whole there, until the step drops them.
        whole = [p.grad for p in self.network.parameters() if p.grad is not None] if self.stage == 0 else []
        own_norm = torch.nn.utils.get_total_norm(whole)
        self.learning_rate = float(self.engine.get_lr()[0])
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return _finite_norm(float(own_norm if norm is None else norm))

    def skip_updates(self, count: int) -> None:
        """Move the schedule on over updates that are not made, so that the rate still ends where it should."""
        for _ in range(count):
            self.engine.lr_scheduler.step()

    def all_reduce(self, sums: Tensor) -> Tensor:
        """Sum over ranks, in float64 on the device. Of ranks that share rows one alone counts: all have the same."""
        total = sums.to(self.device, torch.float64)
        if self.rank % self.row_ranks:
            total = torch.zeros_like(total)
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return total.cpu()

    def largest(self, values: Sequence[float]) -> list[float]:
        """Of each value the largest that any rank has; what is no number counts as infinite."""
        found = torch.tensor(values, dtype=torch.float64, device=self.device).nan_to_num(math.inf, math.inf, math.inf)
        if self.world > 1:
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return [float(value) for value in found]

    def named_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Every tensor of the model by its Hugging Face name; a tied output head appears under its own name too.

        Adapters are not among them. Where the engine ``gathers`` they are shards: use them through ``full``.
        """
        return plain_tensors(model)

    @cached_property
    def frozen_fingerprint(self) -> Fingerprint:
        """Of the weights that are not trained, by layer. Taken once, since they stay as they are."""
        frozen = [(name, p) for name, p in self.network.named_parameters() if not p.requires_grad]
        sums = fingerprint((name, own_part(p, self.rank)) for name, p in frozen)
        if self.stage < 3 or not sums:
            return sums
        total = torch.tensor(list(sums.values()), dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(total)  # of integers, which wrap around as the fingerprint's do
        return dict(zip(sums, total.tolist()))

    @property
    def gathers(self) -> bool:
        """Whether tensors are whole within ``full`` alone."""
        return self.stage == 3 or self.split > 1

    def full(self, tensors: Sequence[Tensor]) -> Any:
        """A context in which the tensors are whole on every rank (collective where the engine ``gathers``)."""
        self.parking.come_back("weights")
        if self.split > 1:
            return tensor_parallel.whole(tensors)
        return deepspeed.zero.GatheredParameters(list(tensors)) if self.stage == 3 else nullcontext()

    def full_state(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """All tensors whole, adapters merged, one by one, on the CPU (collective where the engine ``gathers``)."""
        plain, adapted = self.named_tensors(model), adapters(model)
        for name, tensor in plain.items():
            with self.full(parts([name], plain, adapted)):
                copied = merged(name, plain, adapted).to("cpu", tensor.dtype, copy=True)
            yield name, copied


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor, if every number of it is finite.

    Raises:
        MachineryError: names the tensor.
    """
    bad = int((~torch.isfinite(tensor.detach())).sum())
    if bad:
        raise MachineryError(
            f"numbers that are NaN or infinite during the update, in {name}: {bad} of {tensor.numel()}"
        )
    return tensor


def _finite_norm(norm: float) -> float:
    if not math.isfinite(norm):
        raise MachineryError(f"numbers that are NaN or infinite during the update, in the gradient: its norm is {norm}")
    return norm


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """The whole shape of a tensor that may be a ZeRO-3 shard, or a part of a matrix that ranks share."""
    return tuple(getattr(tensor, "ds_shape", ())) or tensor_parallel.whole_shape(tensor)


def own_part(tensor: Tensor, rank: int) -> Tensor:
    """What this rank holds of a tensor: all of it, or (under ZeRO-3) its shard, flat and without padding."""
    if not hasattr(tensor, "ds_tensor"):
        return tensor
    return tensor.ds_tensor.view(-1)[: _own_size(tensor, rank)]


def _padding(tensor: Tensor, rank: int) -> Tensor:
    """The rest of this rank's shard. DeepSpeed leaves there what was in the memory before, NaN perhaps."""
    return tensor.ds_tensor.view(-1)[_own_size(tensor, rank) :]


def _own_size(tensor: Tensor, rank: int) -> int:
    return max(0, tensor.ds_numel - rank * tensor.ds_tensor.numel())
