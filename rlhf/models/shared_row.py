"""Sequence parallelism: neighbouring ranks share each packed row, with DeepSpeed's Ulysses (Jacobs et al. 2023).

All ranks of such a group are given the same row, and each computes an equal run of its places. In attention they
exchange places for heads (all-to-all) and back: there each has the whole row for its share of the heads. What is read
at places of the row, one number each, becomes whole on every rank (``Reading.whole``), so that losses are computed as
if the rank were alone.

A number's gradient goes only to the rank that computed it. To ZeRO these ranks are as any others: their gradients add
up to the row's.

Shapes: N tokens in the row, S ranks that share it, n = ⌈N/S⌉ places each, K places that are read, k of them this
rank's own; H heads, d hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch import Tensor, distributed, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf.errors import UserError
from rlhf.models.attention import by_sequence, own_attention, use_row_attention
from rlhf.models.head import backbone_of
from rlhf.models.packed_row import Form, PackedRow, hidden_states, without_cache
from rlhf.placement.shared_rows import MODEL_TYPES, indivisible


class Peers:
    """The ranks that share this rank's rows: ``size`` neighbours, among whom it is ``rank``."""

    def __init__(self, model: PreTrainedModel, rank: int, world: int, size: int, timeout_seconds: float) -> None:
        """Meet them, and have the model's attention go over them (collective over all ranks of the role).

        Raises:
            UserError: the model's heads cannot be shared out so, or its layers mix tokens elsewhere than in attention.
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
    """Refuse a model whose rows cannot be shared by so many ranks.

    Raises:
        UserError: its type is not known to work, or its heads do not divide.
    """
    config = model.config
    if config.model_type not in MODEL_TYPES:
        raise UserError(
            f"placement.<role>.sequence_parallel = {size} and a model of type {config.model_type!r}",
            f"that tokens meet in attention alone is known here of {', '.join(MODEL_TYPES)}",
            "placement.<role>.sequence_parallel=1",
        )
    for problem in indivisible("<role>", f"its {config.model_type} model", *_heads(config), size):
        raise problem


def _heads(config: PreTrainedConfig) -> tuple[int, int]:
    """Attention heads of queries, and of keys and values."""
    heads = int(config.num_attention_heads)
    return heads, int(getattr(config, "num_key_value_heads", None) or heads)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What this rank computed of the places asked for.

    Shapes: hidden (k, d); own (k,) which of the K places they are; without peers all of them.
    """

    hidden: Tensor
    own: slice | Tensor
    places: int
    peers: Peers | None

    def whole(self, values: Tensor) -> Tensor:
        """(k,) numbers, one for each place of this rank's → (K,) those of all peers; gradients stay with their own."""
        if self.peers is None or self.places == 0:
            return values
        assert isinstance(self.own, Tensor)
        spread = values.new_zeros(self.places).index_copy(0, self.own, values)
        joined: Tensor = _Joined.apply(spread, self.peers.group)
        return joined


class _Joined(torch.autograd.Function):
    """The sum over peers, of which at each place one alone has a number and the others 0."""

    @staticmethod
    def forward(ctx: Any, spread: Tensor, group: distributed.ProcessGroup) -> Tensor:
        total = spread.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Every peer computes the same loss of the same numbers: it is one loss, and each takes its places' part of it.
        return gradients[0], None


def read(backbone: nn.Module, row: PackedRow, places: Tensor, peers: Peers | None, form: Form = "packed") -> Reading:
    """The last hidden states at ``places`` (K,) of a row; with peers, at those of them that are this rank's."""
    if peers is None:
        hidden = hidden_states(backbone, row, form)[places]
        return Reading(hidden=hidden, own=slice(None), places=len(places), peers=None)
    begin, part = _part(row, peers)
    end = begin + part.tokens.shape[1]
    own = ((places >= begin) & (places < end)).nonzero()[:, 0]
    hidden = hidden_states(backbone, part, over=peers.attention)[places[own] - begin]
    return Reading(hidden=hidden, own=own, places=len(places), peers=peers)


class RowNet(nn.Module):
    """A network that is run over rows of several sequences, by this rank alone or with others."""

    peers: Peers | None = None
    """The ranks that share its rows with this one."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Have the model attend by sequence where its architecture lets its attention be chosen."""
        super().__init__()
        self.form: Form = "packed" if use_row_attention(model) else "padded"

    @property
    def model(self) -> PreTrainedModel:
        """The model whose backbone is run."""
        raise NotImplementedError

    def share_rows(self, rank: int, world: int, size: int, timeout_seconds: float) -> None:
        """From now on compute parts of rows, ``size`` ranks together (collective)."""
        self.peers = Peers(self.model, rank, world, size, timeout_seconds)

    def states(self, row: PackedRow, form: Form) -> Tensor:
        """(N, d) last hidden states of a row, by this rank alone."""
        return hidden_states(backbone_of(self.model), row, form)

    def own_states(self, tokens: Tensor) -> Tensor:
        """(N, d) those of one sequence (N,), as transformers runs the model."""
        backbone = backbone_of(self.model)
        with own_attention(self.model):
            states: Tensor = backbone(tokens[None], **without_cache(backbone)).last_hidden_state[0]
        return states

    def read(self, row: PackedRow, places: Tensor) -> Reading:
        """The last hidden states at ``places`` (K,) of a row: all of them, or this rank's."""
        return read(backbone_of(self.model), row, places, self.peers, self.form)


def _part(row: PackedRow, peers: Peers) -> tuple[int, PackedRow]:
    """This rank's run of places: where it begins, and the row of it, with the lengths of the whole row's sequences.

    The row is filled up to S·n tokens by a sequence of its own, which no place reads.
    """
    tokens = row.tokens.shape[1]
    each = -(-tokens // peers.size)
    filling, begin = each * peers.size - tokens, each * peers.rank
    run = slice(begin, begin + each)
    rest = torch.arange(filling, device=row.tokens.device)[None]
    part = PackedRow(
        tokens=functional.pad(row.tokens, (0, filling))[:, run],
        positions=torch.cat([row.positions, rest], dim=1)[:, run],
        predict_at=row.predict_at,
        targets=row.targets,
        last=row.last,
        lengths=(*row.lengths, filling) if filling else row.lengths,
    )
    return begin, part
