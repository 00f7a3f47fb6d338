"""Log-probabilities and entropies of tokens from logits, in float32, without a full [tokens, vocabulary] tensor.

This is the project's only definition of a log-probability; the policy, the reference, SFT and DPO use it.

With l the logits, T the temperature, m = max l and Z = Σ exp((l − m)/T): log p = (l − m)/T − log Z, and the entropy is
H = log Z − Σ p (l − m)/T. Autograd of these formulas would keep up to five tensors of the logits' size. Here the
forward pass keeps the logits alone, and the backward pass computes their gradient into one more tensor.

Shapes: R positions, V vocabulary; r positions of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK = 2**28
"""Logits that exist at a time: 1 GiB in float32; 2,048 positions for a vocabulary of 131,072."""
BLOCK, GPU_BLOCK = 2**20, 2**24
"""Logits whose probabilities exist at a time: 4 MiB in float32, which fit into a CPU's cache; on a GPU 64 MiB, because
each block costs the launch of a dozen kernels."""
Logits = Callable[[Tensor], Tensor]
"""(R, d) last hidden states → (R, V) logits."""
Entropy = Literal["none", "value", "trained"]
"""Whether entropies are computed, and whether with a gradient."""


def token_logprobs(
    hidden: Tensor, logits_of: Logits, targets: Tensor, temperature: float, vocabulary: int, entropy: Entropy = "none"
) -> tuple[Tensor, ...]:
    """Log-probability of each target and, on request, the entropy of each distribution, in nats.

    Shapes: hidden (R, d), targets (R,) → (R,) or (R,), (R,), float32. ``temperature`` is the sampler's.
    With more than ``CHUNK`` logits, they are computed in chunks, and recomputed in the backward pass. The last chunk's
    are kept, because the backward pass begins with them.
    """
    rows = max(1, CHUNK // vocabulary)
    if len(targets) <= rows:
        return _chunk_logprobs(hidden, logits_of, targets, temperature, entropy)
    *chunks, last = zip(hidden.split(rows), targets.split(rows), strict=True)
    parts = [_recomputed(states, logits_of, ids, temperature, entropy) for states, ids in chunks]
    parts.append(_chunk_logprobs(last[0], logits_of, last[1], temperature, entropy))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _chunk_logprobs(
    hidden: Tensor, logits_of: Logits, targets: Tensor, temperature: float, entropy: Entropy
) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = _LogProbs.apply(logits_of(hidden), targets, temperature, entropy)
    return found


def _recomputed(hidden: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """``_chunk_logprobs``, whose logits do not outlive the forward pass."""
    if not hidden.requires_grad:
        return _chunk_logprobs(hidden, *arguments)
    found: tuple[Tensor, ...] = checkpoint(_chunk_logprobs, hidden, *arguments, use_reentrant=False)
    return found


class _LogProbs(torch.autograd.Function):
    """(R, V) logits and (R,) targets → (R,) log-probabilities and, on request, (R,) entropies."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float, entropy: Entropy) -> tuple[Tensor, ...]:
        blocks = [_statistics(temperature, entropy != "none", *block) for block in _blocks(logits, targets)]
        logprobs, peaks, totals, *entropies = (torch.cat(each) for each in zip(*blocks, strict=True))
        trained = entropies if entropy == "trained" else []
        ctx.save_for_backward(logits, targets, peaks, totals, *trained)
        ctx.temperature = temperature
        if not trained:
            ctx.mark_non_differentiable(*entropies)
        return logprobs, *entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, peaks, totals, *entropies = ctx.saved_tensors
        result = torch.empty_like(logits)
        each = gradients if entropies else gradients[:1]
        for part, *block in _blocks(result, logits, targets, peaks, totals, *each, *entropies):
            part.copy_(_gradient(ctx.temperature, *block))
        return result, None, None, None


def _blocks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of at most ``BLOCK`` logits: of (R, V) tensors their rows, of (R,) tensors columns (r, 1)."""
    rows = max(1, (GPU_BLOCK if logits.is_cuda else BLOCK) // logits.shape[1])
    tables = (each if each.dim() == 2 else each[:, None] for each in (logits, *others))
    return zip(*(table.split(rows) for table in tables), strict=True)


def _statistics(temperature: float, with_entropy: bool, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Of (r, V) logits and (r, 1) targets, (r,) each: log-probability, m, Z and, on request, the entropy."""
    peaks = logits.amax(dim=1, keepdim=True)
    scaled = (_wide(logits) - peaks).div_(temperature)
    weights = scaled.exp()
    totals = weights.sum(dim=1)
    logprobs = scaled.gather(1, targets)[:, 0] - totals.log()
    if not with_entropy:
        return logprobs, peaks[:, 0], totals
    # 0 · −inf counts 0; a NaN among the logits is one in Z
    mean = weights.mul_(scaled).nansum(dim=1) / totals
    return logprobs, peaks[:, 0], totals, totals.log() - mean


def _gradient(
    temperature: float,
    logits: Tensor,
    targets: Tensor,
    peaks: Tensor,
    totals: Tensor,
    of_logprobs: Tensor,
    of_entropies: Tensor | None = None,
    entropies: Tensor | None = None,
) -> Tensor:
    """(r, V) gradient of the logits: ∂log p_t/∂l_i = (δ_it − p_i)/T, ∂H/∂l_i = −p_i (log p_i + H)/T; others (r, 1)."""
    scaled = (_wide(logits) - peaks).div_(temperature)
    probabilities = scaled.exp().div_(totals)
    gradient = probabilities * -of_logprobs
    gradient.scatter_add_(1, targets, of_logprobs)
    if of_entropies is not None and entropies is not None:
        excess = (scaled - totals.log() + entropies).masked_fill_(probabilities == 0, 0)  # 0 · −inf counts 0
        gradient.addcmul_(probabilities, excess.mul_(of_entropies), value=-1)
    return gradient.div_(temperature)


def _wide(logits: Tensor) -> Tensor:
    """The logits in float32, or in float64 if they have it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
