"""Trains or evaluates one network with DeepSpeed.

``update`` divides the summed loss by a global count of tokens (or pairs) over all ranks, micro-batches and packed rows,
so that the gradient does not depend on how the work is divided. DeepSpeed averages gradients over ranks; the factor
``world`` undoes this. With sequence parallelism each rank has the gradient of its token positions, and gradients are
summed as over other ranks; but each rank of a group has the group's whole loss, which ``all_reduce`` counts once. With
tensor parallelism DeepSpeed averages over the ranks that hold the same part.
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
from rlhf.errors import NonFiniteError
from rlhf.models.linear import use_onednn
from rlhf.models.lora import adapters, merged, parts, plain_tensors
from rlhf.models.norm_rotary import use_formulas
from rlhf.models.stored import dtype_of, shape_of, stored_tensors
from rlhf.placement.parallelism import model_parallel_size
from rlhf.placement.pools import Part
from rlhf.progress import PROGRESS
from rlhf.weights.fingerprint import Fingerprint, fingerprint
from rlhf.zero import tensor_parallel
from rlhf.zero.finite import FiniteCheck
from rlhf.zero.offload import Offloader
from rlhf.zero.process_group import Rank
from rlhf.zero.settings import SCHEDULES, deepspeed_config, optimizer_arguments


def shard_while_loading(role: RoleConfig, dtype: str, rank: Rank) -> object | None:
    """Under ZeRO-3, have transformers load a model directly into shards for as long as the returned object lives."""
    return HfDeepSpeedConfig(deepspeed_config(role, dtype, rank.world, rank.device)) if role.zero_stage == 3 else None


class ZeroEngine:
    """One network under DeepSpeed, frozen if it has no optimizer.

    With an optimizer all parameters that require gradients are trained; the optimizer has no state for the others.
    ``learning_rate`` is that of the last update, 0 before the first.

    Under ZeRO-3 and with tensor parallelism every method except ``offload`` and ``skip_updates`` is collective: all
    ranks must call it the same number of times. Offloaded state is reloaded automatically when it is used.
    """

    def __init__(
        self,
        network: nn.Module,
        role: RoleConfig,
        dtype: str,
        rank: Rank,
        device: torch.device,
        optimizer: OptimizerConfig | None = None,
        total_updates: int = 0,
    ) -> None:
        self.rank, self.world, self.device, self.stage = rank.rank, rank.world, device, role.zero_stage
        self.network, self.dtype, self.device_kind, self.learning_rate = network, dtype, rank.device, 0.0
        self.finite = FiniteCheck()
        """Checks the tensors that losses ``watch``."""
        self.model_parallel_size, self.tensor_ranks = model_parallel_size(role), role.tensor_parallel
        if role.zero_stage == 3:
            config = deepspeed_config(role, dtype, rank.world, rank.device)
            deepspeed.zero.Init(module=network, config_dict_or_path=config)
            for parameter in network.parameters():
                _padding(parameter, rank.rank).zero_()
            for parameter in network.external_parameters():
                deepspeed.zero.register_external_parameter(network, parameter)
        if optimizer is None:
            network.requires_grad_(False)
            self.engine: Any = network.eval()
            if role.zero_stage == 3:
                self.engine = self._initialize(role)
            elif self.tensor_ranks > 1:
                self.engine = self._initialize(replace(role, zero_stage=0))  # nothing to shard without an optimizer
            else:
                network.to(device)
            use_onednn(network)
            use_formulas(network)
            self.offloader = Offloader(network, device)
            return
        network.train()  # gradient checkpointing needs training mode; dropout is off in both modes
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        adam = torch.optim.AdamW(trained, **optimizer_arguments(optimizer))
        schedule = get_scheduler(SCHEDULES[optimizer.schedule], adam, optimizer.warmup_steps, total_updates)
        if role.zero_stage < 3 and self.tensor_ranks == 1:
            network.to(device)
        self.engine = self._initialize(role, optimizer.max_grad_norm, optimizer=adam, lr_scheduler=schedule)
        use_onednn(network)
        use_formulas(network)
        self.offloader = Offloader(network, device, self.engine.optimizer, adam)

    def _initialize(self, role: RoleConfig, max_grad_norm: float = 0.0, **training: Any) -> Any:
        config = deepspeed_config(role, self.dtype, self.world, self.device_kind, max_grad_norm)
        engine = deepspeed.initialize(model=self.network, config=config, **training)[0]
        if self.tensor_ranks > 1:
            engine.first_dataloader_check.remove()  # this hook compares inputs with ==, which fails for tensors
        return engine

    def offload(self, parts: Sequence[Part]) -> None:
        """Offload these parts to host memory until they are used, and empty PyTorch's cache on the device."""
        for part in parts:
            self.offloader.offload(part)
        release_cache(self.device)

    def forward(self, *arguments: Any) -> Any:
        """The network's output without gradients."""
        self.offloader.reload("weights")
        with torch.no_grad():
            return self.engine(*arguments)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The output of ``function``, called in place of the network's forward pass through the same engine."""
        self.network.forward = function
        try:
            return self.forward(*arguments)
        finally:
            del self.network.forward

    def update(self, micro_batches: Sequence[Any], loss: Callable[[Any], Tensor], count: int) -> float:
        """Take one optimizer step; returns the gradient norm before clipping.

        Args:
            micro_batches: the same number on every rank.
            loss: maps a micro-batch to the *sum* of its losses; it calls the network through ``self.engine``.
            count: divisor of the sum over all ranks and micro-batches.

        Raises:
            NonFiniteError: a watched tensor is not finite, and the weights are unchanged; or the gradient was not.
        """
        self.offloader.reload("weights", "states")
        for index, micro_batch in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            self.engine.backward(loss(micro_batch) * (self.world // self.tensor_ranks / max(1, count)))
            PROGRESS.part_done()
        self.finite.require(self.all_reduce)
        # At stage 0 DeepSpeed may report no norm; every rank has whole gradients there, which the step then frees.
        whole = [p.grad for p in self.network.parameters() if p.grad is not None] if self.stage == 0 else []
        own_norm = torch.nn.utils.get_total_norm(whole)
        self.learning_rate = float(self.engine.get_lr()[0])
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return _finite_norm(float(own_norm if norm is None else norm))

    @property
    def updates(self) -> int:
        """Number of optimizer steps so far, also of those before a checkpoint that was loaded."""
        return int(self.engine.global_steps)

    def skip_updates(self, count: int) -> None:
        """Advance the learning-rate schedule by ``count`` updates that are not made."""
        for _ in range(count):
            self.engine.lr_scheduler.step()

    def all_reduce(self, sums: Tensor) -> Tensor:
        """Sum over ranks in float64; a sequence-parallel group, whose ranks have equal values, counts once."""
        total = sums.to(self.device, torch.float64)
        if self.rank % self.model_parallel_size:
            total = torch.zeros_like(total)
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return total.cpu()

    def largest(self, values: Sequence[float]) -> list[float]:
        """The maximum of each value over ranks; NaN counts as infinite."""
        largest = torch.tensor(values, dtype=torch.float64, device=self.device).nan_to_num(math.inf, math.inf, math.inf)
        if self.world > 1:
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return [float(value) for value in largest]

    def named_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Every tensor of the model except adapters, by Hugging Face name; a tied output head also has its own name.

        If the engine ``gathers``, the tensors are shards: use them within ``full``.
        """
        return plain_tensors(model)

    @cached_property
    def frozen_fingerprint(self) -> Fingerprint:
        """Fingerprint of the frozen weights, by layer; computed once, since they do not change."""
        frozen = [(name, p) for name, p in self.network.named_parameters() if not p.requires_grad]
        parts = ((name, part) for name, p in frozen for part in stored_tensors(p))
        # Under ZeRO-3 every rank has all scales of a quantised matrix: they count once.
        counted = (each for each in parts if self.stage < 3 or self.rank == 0 or hasattr(each[1], "ds_tensor"))
        sums = fingerprint((name, own_part(part, self.rank)) for name, part in counted)
        if self.stage < 3 or not sums:
            return sums
        total = torch.tensor(list(sums.values()), dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(total)  # integers wrap around, as the fingerprint's sums do
        return dict(zip(sums, total.tolist()))

    @property
    def gathers(self) -> bool:
        """Whether tensors are sharded and must be gathered with ``full``."""
        return self.stage == 3 or self.tensor_ranks > 1

    def full(self, tensors: Sequence[Tensor]) -> Any:
        """Context in which the tensors are whole on every rank (collective if the engine ``gathers``)."""
        self.offloader.reload("weights")
        if self.tensor_ranks > 1:
            return tensor_parallel.whole(tensors)
        return deepspeed.zero.GatheredParameters(list(tensors)) if self.stage == 3 else nullcontext()

    def full_state(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor whole, on the CPU, with adapters merged (collective if the engine ``gathers``)."""
        plain, adapted = self.named_tensors(model), adapters(model)
        for name, tensor in plain.items():
            with self.full(parts([name], plain, adapted)):
                whole = merged(name, plain, adapted).to("cpu", dtype_of(tensor), copy=True)
            yield name, whole


def _finite_norm(norm: float) -> float:
    if not math.isfinite(norm):
        raise NonFiniteError(f"numbers that are NaN or infinite during the update, in the gradient: its norm is {norm}")
    return norm


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """The full shape of a tensor that may be a ZeRO-3 shard, a tensor-parallel part, or quantised."""
    if hasattr(tensor, "quant_state"):
        return shape_of(tensor)
    return tuple(getattr(tensor, "ds_shape", ())) or tensor_parallel.whole_shape(tensor)


def own_part(tensor: Tensor, rank: int) -> Tensor:
    """This rank's part of a tensor: the tensor itself, or under ZeRO-3 its shard, flat and without padding."""
    if not hasattr(tensor, "ds_tensor"):
        return tensor
    return tensor.ds_tensor.view(-1)[: _own_size(tensor, rank)]


def _padding(tensor: Tensor, rank: int) -> Tensor:
    """The padding at the end of this rank's shard, which DeepSpeed leaves uninitialised (possibly NaN)."""
    return tensor.ds_tensor.view(-1)[_own_size(tensor, rank) :]


def _own_size(tensor: Tensor, rank: int) -> int:
    return max(0, tensor.ds_numel - rank * tensor.ds_tensor.numel())
