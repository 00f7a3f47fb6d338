"""Base class of all roles: a network under DeepSpeed on one rank, and this rank's part of each batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from rlhf.algorithms.rewards import count_by_sample
from rlhf.batching import MicroBatches, minibatches, plan
from rlhf.config.schema import OptimizerConfig, Recipe, RoleConfig
from rlhf.device import gpu_of_process
from rlhf.gpus import TERA, peak_flops
from rlhf.models.examine import Examination, Examiner
from rlhf.models.flops import ModelFlops
from rlhf.models.lora import adapter_settings, adapter_tensors
from rlhf.models.packed_row import PackedRow, pack_row
from rlhf.models.saving import try_saving
from rlhf.models.sequence_parallel import RowNet
from rlhf.placement.parallelism import forward_ranks, model_parallel_size
from rlhf.placement.pools import Part
from rlhf.progress import PROGRESS
from rlhf.roles.block_result import BlockResult
from rlhf.storage.write_errors import writing
from rlhf.types import Experience, Int32, Sequences
from rlhf.zero import checkpoint
from rlhf.zero.engine import ZeroEngine, full_shape, shard_while_loading
from rlhf.zero.file_segments import Files
from rlhf.zero.process_group import Rank, join, seed_process
from rlhf.zero.tensor_parallel import check_model as check_tensor_parallel

Network = TypeVar("Network", bound=RowNet)


class Role(Generic[Network]):
    """One model on one rank. Methods are collective: the controller calls them on all ranks with the same arguments."""

    def __init__(
        self,
        recipe: Recipe,
        config: RoleConfig,
        rank: Rank,
        build: Callable[[], Network],
        optimizer: OptimizerConfig | None = None,
        total_updates: int = 0,
    ) -> None:
        """Build the network under DeepSpeed, and probe how its sequences can be packed.

        Args:
            build: returns the network, once this process has joined the group of ranks.
            optimizer: None for a frozen role.
            total_updates: length of the learning-rate schedule, in optimizer steps.

        Raises:
            UserError: the model does not support the recipe's parallelism or packing.
        """
        self.recipe, self.config, self.rank = recipe, config, rank
        self.device = join(rank)
        seed_process(recipe.seed, rank.rank)
        keep = shard_while_loading(config, recipe.model.dtype, rank)
        self.network = build()
        if config.tensor_parallel > 1:
            check_tensor_parallel(self.network.model, config.tensor_parallel)
        if config.sequence_parallel > 1:
            self.network.enable_sequence_parallelism(
                rank.rank, rank.world, config.sequence_parallel, rank.timeout_seconds
            )
        self.engine = ZeroEngine(self.network, config, recipe.model.dtype, rank, self.device, optimizer, total_updates)
        del keep
        self.examination = self._examine(is_saved=optimizer is not None)

    def _examine(self, is_saved: bool) -> Examination:
        """Probe how the network's sequences can be packed; ``is_saved``: also check that the model can be saved."""
        examiner = Examiner(
            network=self.network,
            run=self.engine.run,
            largest=self.engine.largest,
            device=self.device,
            parameters=sum(math.prod(full_shape(parameter)) for parameter in self.network.parameters()),
            may_pack=self.recipe.model.packing == "auto",
            temperature=self.recipe.rollout.temperature,
        )
        found = examiner.examine()
        notes = try_saving(self.network.model) if is_saved else ()
        return replace(found, notes=found.notes + notes)

    def examined(self) -> Examination:
        """The result of the probes that ran when the role was built."""
        return self.examination

    def micro_batches(self, samples: Sequence[int], lengths: Sequence[int] | np.ndarray) -> MicroBatches:
        """This rank's micro-batches of the given samples; every rank has the same number.

        The ranks of a model-parallel group (tensor and sequence parallelism) have the same micro-batches.

        Args:
            lengths: tokens of every sample of the data, also of those that are not in ``samples``.
        """
        return self._divide(samples, lengths, self.config.ranks)

    def _divide(self, samples: Sequence[int], lengths: Sequence[int] | np.ndarray, ranks: int) -> MicroBatches:
        """``micro_batches`` of samples that ``ranks`` consecutive ranks have, among them this one."""
        width, is_padded = model_parallel_size(self.config), self.network.form == "padded"
        return plan(samples, lengths, ranks // width, self.row_tokens, is_padded)[self.rank.rank % ranks // width]

    @property
    def row_tokens(self) -> int:
        """Largest number of tokens of a micro-batch."""
        return self.config.micro_batch_tokens

    def pair_lengths(self, lengths: Int32) -> Int32:
        """(K,) tokens that each pair takes in a micro-batch; ``lengths`` (2K,) of the sequences, two for each pair."""
        if self.network.form == "padded":
            return 2 * np.maximum(lengths[0::2], lengths[1::2])
        return lengths[0::2] + lengths[1::2]

    def compute_part(self, sequences: Sequences, compute: Callable[[PackedRow], Tensor]) -> BlockResult:
        """Run ``compute`` on this rank's part of samples that every rank of the role has.

        Args:
            compute: maps a row to (b,) values, one per sample, or (r,), one per response token.
        """
        return self._compute_part(sequences, compute, self.config.ranks)

    def compute_unit(self, sequences: Sequences, compute: Callable[[PackedRow], Tensor]) -> BlockResult:
        """``compute_part`` of a unit of scoring, which only the ``forward_ranks`` of this rank have."""
        return self._compute_part(sequences, compute, forward_ranks(self.config))

    def _compute_part(self, sequences: Sequences, compute: Callable[[PackedRow], Tensor], ranks: int) -> BlockResult:
        """Divide samples over ``ranks`` ranks; in a model-parallel group only the first rank returns the results."""
        micro_batches = self._divide(range(len(sequences)), sequences.lengths, ranks)
        part = forward_part(sequences, micro_batches, self.device, compute)
        return BlockResult.empty() if self.rank.rank % model_parallel_size(self.config) else part

    @cached_property
    def flops(self) -> ModelFlops:
        """The model's floating-point operations per token in training."""
        return ModelFlops.of(self.network.model, full_shape)

    def utilisation(self, lengths: Sequence[int] | np.ndarray, predicted: int, seconds: float) -> dict[str, float]:
        """``perf/model_tflops``, model TFLOP/s per rank in an update, and ``perf/mfu``, its fraction of the GPU's peak.

        The peak is the data sheet value for this GPU and the recipe's dtype; if it is unknown, ``perf/mfu`` is absent.

        Args:
            lengths: tokens of each sequence of all ranks, repeated for each pass over it.
            predicted: number of tokens for which the output head was computed.
            seconds: duration of the update.
        """
        achieved = self.flops.training(lengths, predicted) / max(seconds, 1e-9) / self.rank.world
        gpu = gpu_of_process(self.rank.device)
        peak = peak_flops(*gpu, self.recipe.model.dtype) if gpu else None
        return {"perf/model_tflops": achieved / TERA} | ({"perf/mfu": achieved / peak} if peak else {})

    def train_step(
        self,
        micro_batches: MicroBatches,
        loss: Callable[[list[int]], Tensor],
        count: int,
        lengths: np.ndarray,
        predicted: int,
    ) -> dict[str, float]:
        """Take one optimizer step of a supervised stage; returns the gradient norm, learning rate and utilisation.

        Args:
            micro_batches, loss, count: see ``ZeroEngine.update``.
            lengths, predicted: see ``utilisation``.
        """
        begun = time.perf_counter()
        norm = self.engine.update(micro_batches, loss, count)
        rates = self.utilisation(lengths, predicted, time.perf_counter() - begun)
        return {"train/grad_norm": norm, "lr": self.engine.learning_rate, **rates}

    def offload(self, parts: Sequence[Part]) -> None:
        """Offload these parts of the network's state to the host: see ``ZeroEngine.offload``."""
        self.engine.offload(parts)

    def snapshot(self) -> tuple[Files, Files]:
        """This rank's files of a checkpoint: its own, and those that all ranks read. Only for a role that trains."""
        return checkpoint.divide(checkpoint.snapshot(self.engine))

    def restore(self, *shards: Files) -> None:
        """Resume from the parts of a snapshot that this rank reads, see ``checkpoint.divide``.

        Raises:
            UserError: the snapshots are of another model, or cannot be converted to this role's ranks and ZeRO stage.
        """
        checkpoint.restore(self.engine, shards)

    def load(self, folder: str) -> None:
        """Resume from a folder with the files of all ranks that took the snapshot.

        Raises:
            UserError: the folder holds no snapshot, or one that ``restore`` refuses.
        """
        checkpoint.load(self.engine, Path(folder))

    def save(self, folder: Path, **config: Any) -> None:
        """Write the model in Hugging Face format, with the entries ``config`` added (collective; rank 0 writes).

        Adapters are merged into the weights, and also written separately to ``adapter``, in PEFT's format.
        """
        engine, model = self.engine, self.network.model
        state: dict[str, Tensor] = {}
        for name, tensor in engine.full_state(model):
            if engine.rank == 0:
                state[name] = tensor
        if engine.rank == 0:
            for key, value in config.items():
                setattr(model.config, key, value)
            with writing(folder / "model*.safetensors"):  # in parts, if it is large
                model.save_pretrained(folder, state_dict=state)
        if (adapter := adapter_settings(model)) is None:
            return
        tensors = adapter_tensors(model)
        with engine.full(list(tensors.values())):
            whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            if engine.rank == 0:
                file = folder / "adapter" / "adapter_model.safetensors"
                with writing(file):
                    adapter.save_pretrained(str(folder / "adapter"))
                    save_file(whole, file, metadata={"format": "pt"})


def plan_updates(recipe: Recipe, experience: Experience, step: int) -> tuple[list[list[int]], int]:
    """The samples of every update of a step, and the number of updates that are left out.

    An update is left out if all samples of its minibatch were dropped: Adam's momentum would change the weights even
    without a gradient.
    """
    algorithm, rollouts = recipe.algorithm, experience.rollouts
    tokens = count_by_sample(rollouts.sequences.response_lengths, experience.response_mask)
    plan = minibatches(len(rollouts), algorithm.minibatches, algorithm.epochs, [recipe.seed, step])
    trained = [indices for indices in plan if tokens[indices].any()]
    return trained, len(plan) - len(trained)


def forward_part(
    sequences: Sequences, micro_batches: MicroBatches, device: torch.device, compute: Callable[[PackedRow], Tensor]
) -> BlockResult:
    """Run ``compute`` on this rank's micro-batches, each packed into one row.

    ``compute`` maps a row to (b,) values, one per sample, or (r,), one per response token.
    """
    outputs = []
    for micro_batch in micro_batches:
        outputs.append(compute(pack_row(sequences, micro_batch, device)).float())
        PROGRESS.part_done()
    samples = np.array([i for micro_batch in micro_batches for i in micro_batch], dtype=np.int64)
    return BlockResult(samples=samples, values=torch.cat(outputs).cpu().numpy())
