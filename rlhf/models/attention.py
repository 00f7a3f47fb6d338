"""Attention over rows of several sequences, each sequence by itself.

It costs the sum of the squared lengths, never the square of a row, and no mask of a whole row exists. transformers
calls it through its interface for attention functions (``AttentionInterface``, ``AttentionMaskInterface``): in place of
a mask its models hand every layer a ``RowMask``, which holds the sequences' lengths and the model's own rule of which
token sees which, so that sliding windows, chunks and bidirectional layers stay what they are.

Shapes: B rows, H heads of queries, K of keys and values, N tokens of a row, D width of a head, L a sequence's tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import varlen
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, causal_mask_function

ATTENTION = "rows_by_sequence"
"""Name under which transformers knows this attention."""

CPU = torch.device("cpu")
WIDEST_HEAD = 256
"""Largest D of FlashAttention's kernels."""
LARGE_MEMORY = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities whose shared memory holds the backward pass of heads wider than 192: A100, H100, B200."""

Attended = tuple[Tensor, None]
"""What transformers' attention functions return: (B, N, H, D), and no attention weights."""
Rule = Callable[..., Tensor]
"""transformers' mask function: (row, head, query position, key position) → whether the query sees the key."""
Band = tuple[int, int]
"""Tokens before a token, and behind it, that it sees: a window as FlashAttention counts it."""
ALL = -1
"""In a band: however many there are."""

_lengths: ContextVar[tuple[int, ...]] = ContextVar("lengths")


@contextmanager
def rows_of(lengths: tuple[int, ...]) -> Iterator[None]:
    """Within the block, masks are made for rows of sequences of these lengths.

    A context and not an argument: the mask is the one thing that every architecture hands on to its attention.
    """
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


@dataclass(frozen=True)
class RowMask:
    """The sequences of the rows, and which tokens of a sequence see which.

    ``lengths`` are of the sequences end to end in one row or, where there are several rows, of the one sequence that
    each of them begins with. All layers of a kind share the object, so what it computes is computed once a pass.
    """

    lengths: tuple[int, ...]
    rule: Rule
    device: torch.device = CPU
    _bias: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict, compare=False)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @cached_property
    def band(self) -> Band | None:
        """How many tokens before and behind itself a token sees, at most; None where the rule is no band.

        Causal attention is (``ALL``, 0); attention over the whole sequence, in both directions, (``ALL``, ``ALL``).
        """
        if self.rule is causal_mask_function:
            return ALL, 0
        if self.rule is bidirectional_mask_function:
            return ALL, ALL
        return self._probe_band()

    def is_causal(self, length: int) -> bool:
        """Whether each token of a sequence of L tokens sees all tokens up to itself and no other."""
        return self.band is not None and self.band[1] == 0 and not 0 <= self.band[0] < length - 1

    def is_full(self, length: int) -> bool:
        """Whether each token of a sequence of L tokens sees all of them."""
        return self.band is not None and not any(0 <= width < length - 1 for width in self.band)

    def bias(self, length: int, dtype: torch.dtype) -> Tensor:
        """(1, 1, L, L) numbers to add to scores: 0 where a token is seen, −inf elsewhere.

        Numbers and no booleans: of those PyTorch would make numbers in every layer anew, and keep them all.
        """
        if (length, dtype) not in self._bias:
            run = torch.arange(length, device=self.device)
            seen = self._sees(run[:, None], run[None, :]).expand(1, 1, length, length)
            zeros = torch.zeros(seen.shape, dtype=dtype, device=self.device)
            self._bias[length, dtype] = zeros.masked_fill_(~seen, -math.inf)
        return self._bias[length, dtype]

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(length, count) of neighbouring sequences that are equally long: they are computed at once."""
        return tuple((length, len(list(equal))) for length, equal in groupby(self.lengths))

    @cached_property
    def ends(self) -> Tensor:
        """(sequences + 1,) int32: where each sequence of a packed row begins, and where the last ends."""
        return torch.tensor((0, *self.lengths)).cumsum(0, dtype=torch.int32).to(self.device, non_blocking=True)

    def _sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the token at position ``query`` of a sequence that stands alone sees the one at ``key``; (n, m)."""
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=self.device)
        return self.rule(zero, zero, query[None, None], key[None, None])

    def _probe_band(self) -> Band | None:
        """The band from the rule itself, in O(L): its width at both ends, then the edges at every token."""
        length, run = self.longest, torch.arange(self.longest, device=self.device)
        before = int(self._sees(run[-1:, None], run[None]).sum()) - 1
        behind = int(self._sees(run[:1, None], run[None]).sum()) - 1
        queries = run[[0, length // 2, length - 1], None], run[None]
        keys = run[None], torch.stack([run - before - 1, run - before, run + behind, run + behind + 1])
        for query, key in zip(queries, keys, strict=True):
            expected = (key >= query - before) & (key <= query + behind)
            inside = (key >= 0) & (key < length)
            seen = self._sees(query, key.clamp(0, length - 1))
            if not bool((~inside | (seen == expected)).all()):
                return None
        return ALL if before == length - 1 else before, ALL if behind == length - 1 else behind


def use_row_attention(model: PreTrainedModel) -> bool:
    """Have the model attend by sequence; returns whether its architecture lets its attention be chosen."""
    if not model._can_set_attn_implementation():
        return False
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, row_mask)
    model.set_attn_implementation(ATTENTION)
    return True


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model attends as transformers has it, step by step, where its attention can be chosen."""
    if not model._can_set_attn_implementation():
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def row_mask(
    batch_size: int, q_length: int, mask_function: Rule = causal_mask_function, device: torch.device = CPU, **rest: Any
) -> RowMask:
    """The mask of one kind of layer, as transformers' mask functions are called.

    Outside of ``rows_of`` every row is one sequence, so that the model can be called as any other.
    """
    return RowMask(_lengths.get((q_length,) * batch_size), mask_function, device)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: RowMask,
    over: Callable[..., tuple[Tensor, Any]] | None = None,
    **rest: Any,
) -> Attended:
    """Attention of one layer: query (B, H, N, D), key and value (B, K, N, D) → (B, N, H, D).

    Args:
        over: exchanges the tokens of ranks that share the row for heads (``rlhf/models/shared_row.py``); each of them
            has a part of the row.
    """
    if over is None:
        return by_sequence(module, query, key, value, attention_mask, **rest)
    attended, _ = over(module, query, key, value, attention_mask, **rest)
    return attended.unflatten(-1, (query.shape[1], -1)), None


def by_sequence(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: RowMask,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **rest: Any,
) -> Attended:
    """Attention of whole rows, each sequence by itself. Which token sees which is the mask's rule alone.

    Args:
        scaling: factor of the scores; 1/√D where it is None.
        softcap: bound of the scores, by tanh (Gemma 2).
        s_aux: (H,) scores of a sink that takes probability and gives nothing (gpt-oss).
        position_bias: (1, H, N, N) added to the scores by distance (MPNet); the same in every sequence.
    """

    def by_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, options = q.shape[2], {}
        is_causal = mask.is_causal(length)
        bias = None if is_causal or mask.is_full(length) else mask.bias(length, q.dtype)
        if position_bias is not None:
            options["position_bias"] = position_bias[..., :length, :length]
        heads: Any = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1])  # of this rank, not of the layer
        return sdpa_attention_forward(heads, q, k, v, bias, scaling=scaling, is_causal=is_causal, **options)[0]

    def by_steps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _written_out(q, k, v, mask, scaling, softcap, s_aux)

    is_plain = softcap is None and s_aux is None
    if not is_plain and position_bias is not None:
        raise NotImplementedError("attention with a bias by position and bounded scores or sinks")
    if is_plain and position_bias is None and _fits_varlen(query, value, mask):
        return _varlen(query, key, value, mask, scaling), None
    form = _padded if len(query) > 1 or len(mask.lengths) == 1 else _packed
    return form(query, key, value, mask, by_kernel if is_plain else by_steps), None


def _packed(query: Tensor, key: Tensor, value: Tensor, mask: RowMask, attention: Callable[..., Tensor]) -> Tensor:
    """Sequences end to end in one row: equally long neighbours become rows of their own for a moment."""
    parts, begin = [], 0
    for length, count in mask.runs:
        end = begin + length * count
        rows = (each[0, :, begin:end].unflatten(1, (count, length)).transpose(0, 1) for each in (query, key, value))
        parts.append(attention(*rows).flatten(0, 1))
        begin = end
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]  # a copy of one part would be saved beside it


def _padded(query: Tensor, key: Tensor, value: Tensor, mask: RowMask, attention: Callable[..., Tensor]) -> Tensor:
    """One sequence at the beginning of each row: of what stands behind it nothing is computed, and it gets zeros."""
    parts, begin, width = [], 0, query.shape[2]
    for length, count in mask.runs:
        rows = (each[begin : begin + count, :, :length] for each in (query, key, value))
        parts.append(functional.pad(attention(*rows), (0, 0, 0, 0, 0, width - length)))
        begin += count
    return torch.cat(parts)


def _fits_varlen(query: Tensor, value: Tensor, mask: RowMask) -> bool:
    """Whether PyTorch's FlashAttention for sequences of several lengths can compute this row."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and len(query) == 1
        and width == value.shape[-1] <= _widest_head(query.device)
        and width % 8 == 0
        and mask.band is not None
    )


@cache
def _widest_head(device: torch.device) -> int:
    """Largest D that FlashAttention has kernels for, backward too; 0 on GPUs older than Ampere, which have none."""
    capability = torch.cuda.get_device_capability(device)
    return 0 if capability < (8, 0) else WIDEST_HEAD if capability in LARGE_MEMORY else 192


def _varlen(query: Tensor, key: Tensor, value: Tensor, mask: RowMask, scaling: float | None) -> Tensor:
    """(1, N, H, D) by ``torch.nn.attention.varlen``, which takes a packed row as it is."""
    groups, options = query.shape[1] // key.shape[1], {}
    if groups > 1 and HAS_GQA:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    q, k, v = (each[0].transpose(0, 1).contiguous() for each in (query, key, value))
    ends, longest = mask.ends, mask.longest
    assert mask.band is not None
    found = varlen.varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=mask.band, **options)
    return found[None]


HAS_GQA = "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters
"""Whether this PyTorch's ``varlen_attn`` takes fewer heads of keys than of queries (from 2.12 on)."""


def _written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: RowMask,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """(B, L, H, D) attention step by step, for scores that no kernel of PyTorch's knows."""
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if not mask.is_full(length):
        scores = scores + mask.bias(length, scores.dtype)
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).to(scores.dtype).expand(len(query), -1, length, 1)
        scores = torch.cat([scores, column], dim=-1)
    likely = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)[..., :length]
    return (likely @ value).transpose(1, 2).contiguous()
