"""The policy network: log-probabilities of the response tokens, in float32, without a full [tokens, vocabulary] tensor.

This is the project's one definition of a log-probability; the policy, the reference and SFT all use it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf.models.packed_row import PackedRow
from rlhf.models.shared_row import RowNet

CHUNK = 2048
"""Response tokens whose logits exist at one time: 1.2 GB in float32 for a vocabulary of 150,000."""


def _chunk_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    logits = functional.linear(hidden, weight, bias).float() / temperature
    logprobs = logits.log_softmax(dim=-1)
    with torch.set_grad_enabled(entropy_gradient and hidden.requires_grad):
        likely = logprobs.exp()
        # 0 · −inf counts 0, in the gradient too
        entropy = -(likely * logprobs.masked_fill(likely == 0, 0)).sum(dim=-1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropy


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution, in nats.

    Shapes: hidden (R, d), weight (V, d), bias (V,), targets (R,) → (R,), (R,), float32. Logits are made chunk by chunk,
    and made again in the backward pass, so that at most ``CHUNK`` rows of them exist. Softmax at ``temperature``, as
    the sampler's. Entropies carry a gradient only where it is asked for: it costs a pass over the vocabulary.
    """
    parts = []
    for begin in range(0, max(1, len(targets)), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        arguments = (hidden[chunk], weight, bias, targets[chunk], temperature, entropy_gradient)
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
        self.head = (lm.get_output_embeddings(),)  # in a tuple: a view of a part of ``lm``, not a second child

    @property
    def model(self) -> PreTrainedModel:
        """The language model."""
        return self.lm

    def external_parameters(self) -> list[nn.Parameter]:
        """Parameters used outside their own module's forward pass; ZeRO-3 must be told of them."""
        return list(self.head[0].parameters())

    def forward(self, row: PackedRow, temperature: float, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """(R,) log-probabilities and (R,) entropies of the row's response tokens, in nats, float32."""
        reading = self.read(row, row.predict_at)
        head = self.head[0]
        logprobs, entropy = token_logprobs(
            reading.hidden,
            head.weight,
            getattr(head, "bias", None),
            row.targets[reading.own],
            temperature,
            entropy_gradient,
        )
        return reading.whole(logprobs), reading.whole(entropy)
