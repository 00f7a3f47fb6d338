"""Sequence parallelism: neighbouring ranks split each packed row, with DeepSpeed's Ulysses (Jacobs et al. 2023).

All ranks of a group get the same row, and each computes an equal range of its token positions. In attention they
exchange positions for heads (all-to-all) and back, so that each rank has the whole row for its part of the heads.
Values read at positions of the row are gathered on every rank (``PositionStates.gather``), so that losses are computed
as on a single rank.

The gradient of a value goes only to the rank that computed it. ZeRO treats these ranks like any others: their gradients
add up to the row's.

Shapes: N tokens in the row, S ranks of the group, n = ⌈N/S⌉ positions per rank, K positions that are read, k of them on
this rank; H heads, d hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch import Tensor, distributed, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf.errors import UserError
from rlhf.models.attention import by_sequence, own_attention, use_row_attention
from rlhf.models.head import backbone_of
from rlhf.models.packed_row import FILL, Form, PackedRow, fill, hidden_states, without_cache
from rlhf.placement.parallelism import SEQUENCE_PARALLEL_TYPES, sequence_parallel_problems


class SequenceParallelGroup:
    """The ``size`` neighbouring ranks that split rows with this one, which has ``rank`` among them."""

    def __init__(self, model: PreTrainedModel, rank: int, world: int, size: int, timeout_seconds: float) -> None:
        """Create the process group and its attention (collective over all ranks of the role).

        Raises:
            UserError: the model's heads do not divide by ``size``, or its layers mix tokens outside attention.
        """
        check_model(model, size)
        wait = timedelta(seconds=timeout_seconds)
        groups = [distributed.new_group(range(i, i + size), timeout=wait) for i in range(0, world, size)]
        self.size, (group, self.rank) = size, divmod(rank, size)
        self.group = groups[group]
        config, (heads, kv_heads) = model.config, _heads(model.config)
        self.attention = UlyssesSPAttentionHF(
            attn=by_sequence,
            batch_size=1,
            attn_head_count=heads,
            attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            kv_head_count=kv_heads,
            num_hidden_layers=config.num_hidden_layers,
            process_group=self.group,
            seq_length_is_variable=True,
        )


def check_model(model: PreTrainedModel, size: int) -> None:
    """Check that the rows of a model can be split over ``size`` ranks.

    Raises:
        UserError: the model's type is not supported, or its heads do not divide by ``size``.
    """
    config = model.config
    if config.model_type not in SEQUENCE_PARALLEL_TYPES:
        raise UserError(
            f"placement.<role>.sequence_parallel = {size} and a model of type {config.model_type!r}",
            f"only these types are known to mix tokens in attention alone: {', '.join(SEQUENCE_PARALLEL_TYPES)}",
            "placement.<role>.sequence_parallel=1",
        )
    for problem in sequence_parallel_problems("<role>", f"its {config.model_type} model", *_heads(config), size):
        raise problem


def _heads(config: PreTrainedConfig) -> tuple[int, int]:
    """Attention heads of queries, and of keys and values."""
    heads = int(config.num_attention_heads)
    return heads, int(getattr(config, "num_key_value_heads", None) or heads)


@dataclass(frozen=True, kw_only=True)
class PositionStates:
    """Last hidden states that this rank computed for the requested positions.

    Shapes: hidden (k, d); own (k,) indices of this rank's among the K positions; without a group all of them.
    """

    hidden: Tensor
    own: slice | Tensor
    count: int
    sequence_group: SequenceParallelGroup | None

    def gather(self, values: Tensor) -> Tensor:
        """(k,) values at this rank's positions → (K,) values of the whole group; gradients stay with their rank."""
        if self.sequence_group is None or self.count == 0:
            return values
        assert isinstance(self.own, Tensor)
        spread = values.new_zeros(self.count).index_copy(0, self.own, values)
        gathered: Tensor = _SumOverGroup.apply(spread, self.sequence_group.group)
        return gathered


class _SumOverGroup(torch.autograd.Function):
    """The sum over the group, in which exactly one rank has a value at each position and the others have 0."""

    @staticmethod
    def forward(ctx: Any, spread: Tensor, group: distributed.ProcessGroup) -> Tensor:
        total = spread.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # All ranks compute the same loss from the same values: each rank takes the gradient of its own positions.
        return gradients[0], None


def read(
    backbone: nn.Module,
    row: PackedRow,
    positions: Tensor,
    sequence_group: SequenceParallelGroup | None,
    form: Form = "packed",
) -> PositionStates:
    """Last hidden states at ``positions`` (K,) of a row; with a group, at those of this rank's range."""
    if sequence_group is None:
        full = fill(row) if form == "packed" else row
        hidden = hidden_states(backbone, full, form).index_select(0, positions)
        return PositionStates(hidden=hidden, own=slice(None), count=len(positions), sequence_group=None)
    begin, part = _split_row(row, sequence_group)
    end = begin + part.tokens.shape[1]
    own = ((positions >= begin) & (positions < end)).nonzero()[:, 0]
    hidden = hidden_states(backbone, part, over=sequence_group.attention).index_select(0, positions[own] - begin)
    return PositionStates(hidden=hidden, own=own, count=len(positions), sequence_group=sequence_group)


class RowNet(nn.Module):
    """A network that runs over packed rows, on this rank alone or with a sequence-parallel group."""

    sequence_group: SequenceParallelGroup | None = None
    """The group that splits rows, if any."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Install the attention for packed rows, if the architecture supports it."""
        super().__init__()
        self.form: Form = "packed" if use_row_attention(model) else "padded"

    @property
    def model(self) -> PreTrainedModel:
        """The model whose backbone is run."""
        raise NotImplementedError

    def enable_sequence_parallelism(self, rank: int, world: int, size: int, timeout_seconds: float) -> None:
        """Split rows over ``size`` ranks from now on (collective)."""
        self.sequence_group = SequenceParallelGroup(self.model, rank, world, size, timeout_seconds)

    def states(self, row: PackedRow, form: Form) -> Tensor:
        """(N, d) last hidden states of a row, computed by this rank alone."""
        return hidden_states(backbone_of(self.model), row, form)

    def own_states(self, tokens: Tensor) -> Tensor:
        """(N, d) last hidden states of one sequence (N,), as transformers runs the model."""
        backbone = backbone_of(self.model)
        with own_attention(self.model):
            states: Tensor = backbone(tokens[None], **without_cache(backbone)).last_hidden_state[0]
        return states

    def read(self, row: PackedRow, positions: Tensor) -> PositionStates:
        """Last hidden states at ``positions`` (K,) of a row: all of them, or those of this rank's range."""
        return read(backbone_of(self.model), row, positions, self.sequence_group, self.form)


def _split_row(row: PackedRow, sequence_group: SequenceParallelGroup) -> tuple[int, PackedRow]:
    """This rank's range of positions: its begin, and its part of the row, filled, with the lengths of the whole row."""
    full = fill(row, FILL * sequence_group.size)
    each = full.tokens.shape[1] // sequence_group.size
    begin = each * sequence_group.rank
    run = slice(begin, begin + each)
    part = replace(full, tokens=full.tokens[:, run], positions=full.positions[:, run])
    return begin, part
