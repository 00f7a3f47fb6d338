"""The policy network: log-probabilities of the response tokens, in float32, without a full [tokens, vocabulary] tensor.

This is the project's one definition of a log-probability; the policy, the reference and SFT all use it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf.models.attention import own_attention
from rlhf.models.head import OutputHead
from rlhf.models.packed_row import PackedRow, without_cache
from rlhf.models.shared_row import RowNet

CHUNK = 2048
"""Response tokens whose logits exist at one time: 1.2 GB in float32 for a vocabulary of 150,000."""
Logits = Callable[[Tensor], Tensor]
"""(R, d) last hidden states → (R, V) logits."""


def _chunk_logprobs(
    hidden: Tensor, logits_of: Logits, targets: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    logits = logits_of(hidden).float() / temperature
    logprobs = logits.log_softmax(dim=-1)
    with torch.set_grad_enabled(entropy_gradient and hidden.requires_grad):
        likely = logprobs.exp()
        # 0 · −inf counts 0, in the gradient too
        entropy = -(likely * logprobs.masked_fill(likely == 0, 0)).sum(dim=-1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropy


def token_logprobs(
    hidden: Tensor, logits_of: Logits, targets: Tensor, temperature: float, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution, in nats.

    Shapes: hidden (R, d), targets (R,) → (R,), (R,), float32. Logits are made chunk by chunk, and made again in the
    backward pass, so that at most ``CHUNK`` rows of them exist. Softmax at ``temperature``, as the sampler's. Entropies
    carry a gradient only where it is asked for: it costs a pass over the vocabulary.
    """
    parts = []
    for begin in range(0, max(1, len(targets)), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        arguments = (hidden[chunk], logits_of, targets[chunk], temperature, entropy_gradient)
        if hidden.requires_grad:
            parts.append(checkpoint(_chunk_logprobs, *arguments, use_reentrant=False))
        else:
            parts.append(_chunk_logprobs(*arguments))
    logprobs, entropy = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


class PolicyNet(RowNet):
    """A causal language model that answers with log-probabilities and entropies of the response tokens."""

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__(lm)
        self.lm = lm
        self.head = OutputHead(lm)

    @property
    def model(self) -> PreTrainedModel:
        """The language model."""
        return self.lm

    def external_parameters(self) -> list[nn.Parameter]:
        """Parameters used outside their own module's forward pass; ZeRO-3 must be told of them."""
        return self.head.parameters()

    def forward(self, row: PackedRow, temperature: float, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """(R,) log-probabilities and (R,) entropies of the row's response tokens, in nats, float32."""
        reading = self.read(row, row.predict_at)
        logprobs, entropy = token_logprobs(
            reading.hidden, self.head.logits, row.targets[reading.own], temperature, entropy_gradient
        )
        return reading.whole(logprobs), reading.whole(entropy)

    def own_logprobs(self, tokens: Tensor, temperature: float) -> Tensor:
        """(N − 1,) log-probabilities of a sequence's (N,) tokens but the first, from logits as transformers has them.

        All logits of the sequence exist at one time: it is to be short.
        """
        with own_attention(self.lm):
            logits = self.lm.forward(tokens[None], **without_cache(self.lm)).logits[0, :-1]
        return (logits.float() / temperature).log_softmax(dim=-1).gather(1, tokens[1:, None])[:, 0]
