"""Attention over rows of several sequences, each sequence by itself.

It costs the sum of the squared lengths, never the square of a row, and no mask of a whole row exists. transformers
calls it through its interface for attention functions (``AttentionInterface``, ``AttentionMaskInterface``): in place of
a mask its models hand every layer a ``RowMask``, which holds the sequences' lengths and the model's own rule of which
token sees which, so that sliding windows, chunks and bidirectional layers stay what they are.

Shapes: B rows, H heads of queries, K of keys and values, N tokens of a row, D width of a head, L a sequence's tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
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

WIDEST_HEAD = 256
"""Largest D of FlashAttention's kernels."""

Attended = tuple[Tensor, None]
"""What transformers' attention functions return: (B, N, H, D), and no attention weights."""
Rule = Callable[..., Tensor]
"""transformers' mask function: (row, head, query position, key position) → whether the query sees the key."""

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
    each of them begins with.
    """

    lengths: tuple[int, ...]
    rule: Rule
    _dense: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, compare=False)

    @property
    def is_plain(self) -> bool:
        """Whether a token sees all tokens up to itself, or all of its sequence."""
        return self.rule in (causal_mask_function, bidirectional_mask_function)

    @property
    def is_causal(self) -> bool:
        """Whether the rule is that a token sees all tokens up to itself."""
        return self.rule is causal_mask_function

    def dense(self, length: int, device: torch.device) -> Tensor | None:
        """(1, 1, L, L) the rule over one sequence, as if it stood alone; None where it is plain."""
        if self.is_plain:
            return None
        if (length, device) not in self._dense:
            zero, run = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device), torch.arange(length, device=device)
            seen = self.rule(zero, zero, run[None, None, :, None], run[None, None, None, :])
            self._dense[length, device] = seen.expand(1, 1, length, length)
        return self._dense[length, device]

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(length, count) of neighbouring sequences that are equally long: they are computed at once."""
        return tuple((length, len(list(equal))) for length, equal in groupby(self.lengths))

    @cached_property
    def ends(self) -> Tensor:
        """(sequences + 1,) int32, on the host: where each sequence of a packed row begins, and where the last ends."""
        return torch.tensor((0, *self.lengths)).cumsum(0, dtype=torch.int32)


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
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(ATTENTION)


def row_mask(batch_size: int, q_length: int, mask_function: Rule = causal_mask_function, **rest: Any) -> RowMask:
    """The mask of one kind of layer, as transformers' mask functions are called.

    Outside of ``rows_of`` every row is one sequence, so that the model can be called as any other.
    """
    return RowMask(_lengths.get((q_length,) * batch_size), mask_function)


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
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> Attended:
    """Attention of whole rows, each sequence by itself.

    Args:
        scaling: factor of the scores; 1/√D where it is None.
        sliding_window: how many tokens a token sees, itself included, where the model limits them. On the CPU the
            mask's rule alone counts.
        softcap: bound of the scores, by tanh (Gemma 2).
        s_aux: (H,) scores of a sink that takes probability and gives nothing (gpt-oss).
    """
    if softcap is None and s_aux is None:
        if _fits_varlen(query, value, mask, sliding_window):
            return _varlen(query, key, value, mask, scaling, sliding_window), None
        rest = {name: each for name, each in rest.items() if name not in ("is_causal", "dropout")}

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen = mask.dense(q.shape[2], q.device)
            out, _ = sdpa_attention_forward(module, q, k, v, seen, scaling=scaling, is_causal=mask.is_causal, **rest)
            return out
    else:

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return _written_out(q, k, v, mask, scaling, softcap, s_aux)

    if len(query) > 1 or len(mask.lengths) == 1:
        return _padded(query, key, value, mask, attention), None
    return _packed(query, key, value, mask, attention), None


def _packed(query: Tensor, key: Tensor, value: Tensor, mask: RowMask, attention: Callable[..., Tensor]) -> Tensor:
    """Sequences end to end in one row: equally long neighbours become rows of their own for a moment."""
    parts, begin = [], 0
    for length, count in mask.runs:
        end = begin + length * count
        rows = (each[0, :, begin:end].unflatten(1, (count, length)).transpose(0, 1) for each in (query, key, value))
        parts.append(attention(*rows).flatten(0, 1))
        begin = end
    return torch.cat(parts)[None]


def _padded(query: Tensor, key: Tensor, value: Tensor, mask: RowMask, attention: Callable[..., Tensor]) -> Tensor:
    """One sequence at the beginning of each row: of what stands behind it nothing is computed, and it gets zeros."""
    parts, begin, width = [], 0, query.shape[2]
    for length, count in mask.runs:
        rows = (each[begin : begin + count, :, :length] for each in (query, key, value))
        parts.append(functional.pad(attention(*rows), (0, 0, 0, 0, 0, width - length)))
        begin += count
    return torch.cat(parts)


def _fits_varlen(query: Tensor, value: Tensor, mask: RowMask, sliding_window: int | None) -> bool:
    """Whether PyTorch's FlashAttention for sequences of several lengths can compute this row."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and len(query) == 1
        and query.shape[-1] == value.shape[-1] <= WIDEST_HEAD
        and (mask.is_plain or sliding_window is not None)
    )


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, mask: RowMask, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """(1, N, H, D) by ``torch.nn.attention.varlen``, which takes a packed row as it is."""
    backwards = -1 if mask.is_plain or sliding_window is None else sliding_window - 1
    window = (backwards, -1 if mask.rule is bidirectional_mask_function else 0)
    groups, options = query.shape[1] // key.shape[1], {}
    if groups > 1 and HAS_GQA:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    tokens = (each[0].transpose(0, 1).contiguous() for each in (query, key, value))
    ends, longest = mask.ends.to(query.device, non_blocking=True), max(mask.lengths)
    answer = varlen.varlen_attn(*tokens, ends, ends, longest, longest, scale=scaling, window_size=window, **options)
    return answer[None]


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
    seen = mask.dense(length, query.device)
    if mask.is_causal:
        seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).to(scores.dtype).expand(len(query), -1, length, 1)
        scores = torch.cat([scores, column], dim=-1)
    likely = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)[..., :length]
    return (likely @ value).transpose(1, 2).contiguous()
