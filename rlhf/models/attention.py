"""Attention over packed rows, in which each sequence attends only to itself.

The cost is the sum of the squared sequence lengths, and no mask of a whole row is built. transformers calls this module
through ``AttentionInterface`` and ``AttentionMaskInterface``: instead of a mask tensor, models pass a ``RowMask`` to
every layer. It holds the sequence lengths and the model's own mask function, so sliding windows, chunks and
bidirectional layers keep their meaning.

Shapes: B rows, H query heads, K key/value heads, N tokens of a row, D head size, L tokens of one sequence.
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

from rlhf.device import attention_dtype

ATTENTION = "rows_by_sequence"
"""Name under which this attention is registered with transformers."""

CPU = torch.device("cpu")
WIDEST_HEAD = 256
"""Largest D for which FlashAttention has kernels."""
LARGE_MEMORY = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities whose shared memory fits the backward pass for D > 192: A100, H100, B200."""

Attended = tuple[Tensor, None]
"""Return value of transformers' attention functions: (B, N, H, D), without attention weights."""
Rule = Callable[..., Tensor]
"""transformers' mask function: (row, head, query position, key position) → whether the query sees the key."""
Band = tuple[int, int]
"""Number of tokens before and after a token that it attends to: FlashAttention's ``window_size``."""
ALL = -1
"""Unlimited side of a band."""

_lengths: ContextVar[tuple[int, ...]] = ContextVar("lengths")


@contextmanager
def rows_of(lengths: tuple[int, ...]) -> Iterator[None]:
    """Build the masks of the block for rows that hold sequences of these lengths.

    The lengths are context and no argument, because the mask is all that every architecture passes to its attention.
    """
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


@dataclass(frozen=True)
class RowMask:
    """Sequence lengths of the rows, and the rule of which token attends to which.

    ``lengths`` describes the sequences packed into one row or, for several rows, the one sequence at the start of each.
    All layers of a kind share the object, so its cached values are computed once per pass.
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
        """The attention window of the rule; None if the rule is not a window.

        Causal attention is (``ALL``, 0), bidirectional attention (``ALL``, ``ALL``).
        """
        if self.rule is causal_mask_function:
            return ALL, 0
        if self.rule is bidirectional_mask_function:
            return ALL, ALL
        return self._probe_band()

    def is_causal(self, length: int) -> bool:
        """Whether attention within a sequence of L tokens is plain causal attention."""
        return self.band is not None and self.band[1] == 0 and not 0 <= self.band[0] < length - 1

    def is_full(self, length: int) -> bool:
        """Whether each token of a sequence of L tokens attends to all of them."""
        return self.band is not None and not any(0 <= width < length - 1 for width in self.band)

    def bias(self, length: int, dtype: torch.dtype) -> Tensor:
        """(1, 1, L, L) bias added to the scores: 0 where the query attends to the key, −inf elsewhere.

        PyTorch would convert a boolean mask to numbers again in every layer, and keep each copy.
        """
        if (length, dtype) not in self._bias:
            positions = torch.arange(length, device=self.device)
            visible = self._evaluate_rule(positions[:, None], positions[None, :]).expand(1, 1, length, length)
            zeros = torch.zeros(visible.shape, dtype=dtype, device=self.device)
            self._bias[length, dtype] = zeros.masked_fill_(~visible, -math.inf)
        return self._bias[length, dtype]

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(length, count) of consecutive sequences of equal length, which are computed as one batch."""
        return tuple((length, len(list(equal))) for length, equal in groupby(self.lengths))

    @cached_property
    def ends(self) -> Tensor:
        """(sequences + 1,) int32: cumulative sequence lengths of a packed row, starting at 0."""
        return torch.tensor((0, *self.lengths)).cumsum(0, dtype=torch.int32).to(self.device, non_blocking=True)

    def _evaluate_rule(self, query: Tensor, key: Tensor) -> Tensor:
        """(n, m): whether the query at each position of a single sequence attends to each key."""
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=self.device)
        return self.rule(zero, zero, query[None, None], key[None, None])

    def _probe_band(self) -> Band | None:
        """Find the band by evaluating the rule, in O(L): its width at both ends, then its edges at every token."""
        length, at = self.longest, torch.arange(self.longest, device=self.device)
        before = int(self._evaluate_rule(at[-1:, None], at[None]).sum()) - 1
        after = int(self._evaluate_rule(at[:1, None], at[None]).sum()) - 1
        queries = at[[0, length // 2, length - 1], None], at[None]
        keys = at[None], torch.stack([at - before - 1, at - before, at + after, at + after + 1])
        for query, key in zip(queries, keys, strict=True):
            expected = (key >= query - before) & (key <= query + after)
            is_inside = (key >= 0) & (key < length)
            visible = self._evaluate_rule(query, key.clamp(0, length - 1))
            if not bool((~is_inside | (visible == expected)).all()):
                return None
        return ALL if before == length - 1 else before, ALL if after == length - 1 else after


def use_row_attention(model: PreTrainedModel) -> bool:
    """Switch the model to this attention; returns False if its architecture does not support another attention."""
    if not model._can_set_attn_implementation():
        return False
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, row_mask)
    model.set_attn_implementation(ATTENTION)
    return True


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Run the block with transformers' eager attention, if the architecture supports choosing one."""
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
    """Build the mask of one kind of layer; the signature is that of transformers' mask functions.

    Outside ``rows_of`` every row is one sequence, so the model can be called like any other.
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
        over: Ulysses attention, for a row split over ranks (``rlhf/models/sequence_parallel.py``): it exchanges tokens
            for heads before and after.
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
    """Attention of whole rows, each sequence separately; only the mask's rule decides which token attends to which.

    Args:
        scaling: factor of the scores; None: 1/√D.
        softcap: bound of the scores, by tanh (Gemma 2).
        s_aux: (H,) scores of an attention sink, which takes probability and has no value (gpt-oss).
        position_bias: (1, H, N, N) relative position bias (MPNet), the same for every sequence.
    """

    def by_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of equally long sequences, one per row, by PyTorch's scaled dot-product attention."""
        length, options = q.shape[2], {}
        dtype, is_causal = attention_dtype(q, length), mask.is_causal(length)
        rows = (each.to(dtype) for each in (q, k, v))
        bias = None if is_causal or mask.is_full(length) else mask.bias(length, dtype)
        if position_bias is not None:
            options["position_bias"] = position_bias[..., :length, :length].to(dtype)
        heads: Any = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1])  # this rank's, not the layer's
        attended, _ = sdpa_attention_forward(heads, *rows, bias, scaling=scaling, is_causal=is_causal, **options)
        return attended.to(q.dtype)

    def by_steps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _eager(q, k, v, mask, scaling, softcap, s_aux)

    is_plain = softcap is None and s_aux is None
    if not is_plain and position_bias is not None:
        raise NotImplementedError("attention with a position bias and softcapped scores or sinks")
    if is_plain and position_bias is None and _fits_varlen(query, value, mask):
        return _varlen(query, key, value, mask, scaling), None
    form = _padded if len(query) > 1 or len(mask.lengths) == 1 else _packed
    return form(query, key, value, mask, by_kernel if is_plain else by_steps), None


def _packed(query: Tensor, key: Tensor, value: Tensor, mask: RowMask, attention: Callable[..., Tensor]) -> Tensor:
    """Attention of a packed row: consecutive sequences of equal length are computed as one batch.

    The row is split at once, because the gradient of each slice would be as large as the row.
    """
    sizes, parts = [length * count for length, count in mask.runs], []
    pieces = zip(*(each[0].split(sizes, dim=1) for each in (query, key, value)), strict=True)
    for (length, count), piece in zip(mask.runs, pieces, strict=True):
        rows = (each.unflatten(1, (count, length)).transpose(0, 1) for each in piece)
        parts.append(attention(*rows).flatten(0, 1))
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]  # autograd would save a copy too


def _padded(query: Tensor, key: Tensor, value: Tensor, mask: RowMask, attention: Callable[..., Tensor]) -> Tensor:
    """Attention of padded rows, one sequence each: padding is not computed, and its output is zero."""
    counts, parts, width = [count for _, count in mask.runs], [], query.shape[2]
    pieces = zip(*(each.split(counts) for each in (query, key, value)), strict=True)
    for (length, _), piece in zip(mask.runs, pieces, strict=True):
        rows = (each[:, :, :length] for each in piece)
        parts.append(functional.pad(attention(*rows), (0, 0, 0, 0, 0, width - length)))
    return torch.cat(parts)


def _fits_varlen(query: Tensor, value: Tensor, mask: RowMask) -> bool:
    """Whether PyTorch's variable-length FlashAttention supports this row."""
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
    """Largest D for which FlashAttention has forward and backward kernels; 0 on GPUs older than Ampere."""
    capability = torch.cuda.get_device_capability(device)
    return 0 if capability < (8, 0) else WIDEST_HEAD if capability in LARGE_MEMORY else 192


def _varlen(query: Tensor, key: Tensor, value: Tensor, mask: RowMask, scaling: float | None) -> Tensor:
    """(1, N, H, D) attention of a packed row by ``torch.nn.attention.varlen``."""
    groups, options = query.shape[1] // key.shape[1], {}
    if groups > 1 and HAS_GQA:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    q, k, v = (each[0].transpose(0, 1).contiguous() for each in (query, key, value))
    ends, longest = mask.ends, mask.longest
    assert mask.band is not None
    output = varlen.varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=mask.band, **options)
    return output[None]


HAS_GQA = "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters
"""Whether this PyTorch's ``varlen_attn`` supports grouped-query attention (2.12 and later)."""


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: RowMask,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """(B, L, H, D) attention in elementary operations, for softcaps and sinks, which PyTorch's kernels lack."""
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
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)[..., :length]
    return (weights @ value).transpose(1, 2).contiguous()
