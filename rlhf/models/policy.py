"""The policy network: log-probabilities of the response tokens in float32, without a full [tokens, vocabulary] tensor.

This is the project's only definition of a log-probability; the policy, the reference and SFT use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf.models.attention import own_attention
from rlhf.models.head import OutputHead
from rlhf.models.packed_row import PackedRow, without_cache
from rlhf.models.sequence_parallel import RowNet

CHUNK = 2048
"""Response tokens whose logits exist at one time: 1.2 GB in float32 for a vocabulary of 150,000."""
Logits = Callable[[Tensor], Tensor]
"""(R, d) last hidden states → (R, V) logits."""
Entropy = Literal["none", "value", "trained"]
"""Whether entropies are computed, which takes several passes over the vocabulary, and whether with a gradient."""


def _chunk_logprobs(
    hidden: Tensor, logits_of: Logits, targets: Tensor, temperature: float, entropy: Entropy
) -> tuple[Tensor, ...]:
    logprobs = (logits_of(hidden).float() / temperature).log_softmax(dim=-1)
    chosen = logprobs.gather(1, targets[:, None])[:, 0]
    if entropy == "none":
        return (chosen,)
    with torch.set_grad_enabled(entropy == "trained" and hidden.requires_grad):
        likely = logprobs.exp()
        # 0 · −inf counts 0, in the gradient too
        return chosen, -(likely * logprobs.masked_fill(likely == 0, 0)).sum(dim=-1)


def token_logprobs(
    hidden: Tensor, logits_of: Logits, targets: Tensor, temperature: float, entropy: Entropy = "none"
) -> tuple[Tensor, ...]:
    """Log-probability of each target and, on request, the entropy of each distribution, in nats.

    Shapes: hidden (R, d), targets (R,) → (R,) or (R,), (R,), float32. ``temperature`` is the sampler's.
    Logits are computed in chunks and recomputed in the backward pass, so at most ``CHUNK`` rows exist at a time. The
    last chunk's are kept, because the backward pass begins with them.
    """
    parts = []
    for begin in range(0, max(1, len(targets)), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        arguments = (hidden[chunk], logits_of, targets[chunk], temperature, entropy)
        if hidden.requires_grad and begin + CHUNK < len(targets):
            parts.append(checkpoint(_chunk_logprobs, *arguments, use_reentrant=False))
        else:
            parts.append(_chunk_logprobs(*arguments))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


class PolicyNet(RowNet):
    """Causal language model that returns log-probabilities and entropies of response tokens."""

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__(lm)
        self.lm = lm
        self.head = OutputHead(lm)

    @property
    def model(self) -> PreTrainedModel:
        """The language model."""
        return self.lm

    def external_parameters(self) -> list[nn.Parameter]:
        """Parameters used outside their own module's forward pass, to be registered with ZeRO-3."""
        return self.head.parameters()

    def forward(self, row: PackedRow, temperature: float, entropy: Entropy = "none") -> tuple[Tensor, ...]:
        """(R,) log-probabilities and, on request, (R,) entropies of the row's response tokens, in nats, float32."""
        reading = self.read(row, row.predict_at)
        found = token_logprobs(reading.hidden, self.head.logits, row.targets[reading.own], temperature, entropy)
        return tuple(reading.gather(each) for each in found)

    def own_logprobs(self, tokens: Tensor, temperature: float) -> Tensor:
        """(N − 1,) log-probabilities of a sequence's tokens (N,) after the first, from transformers' own forward pass.

        All logits of the sequence exist at one time: keep it short.
        """
        with own_attention(self.lm):
            logits = self.lm.forward(tokens[None], **without_cache(self.lm)).logits[0, :-1]
        return (logits.float() / temperature).log_softmax(dim=-1).gather(1, tokens[1:, None])[:, 0]
