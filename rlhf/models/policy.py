"""The policy network: log-probabilities of the response tokens, from the hidden states of packed rows."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.models.attention import own_attention
from rlhf.models.head import OutputHead
from rlhf.models.logprobs import Entropy, token_logprobs
from rlhf.models.packed_row import PackedRow, without_cache
from rlhf.models.sequence_parallel import RowNet


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
        targets = row.targets[reading.own]
        found = token_logprobs(reading.hidden, self.head.logits, targets, temperature, self.head.vocabulary, entropy)
        return tuple(reading.gather(each) for each in found)

    def own_logprobs(self, tokens: Tensor, temperature: float) -> Tensor:
        """(N − 1,) log-probabilities of a sequence's tokens (N,) after the first, from transformers' own forward pass.

        All logits of the sequence exist at one time: keep it short.
        """
        with own_attention(self.lm):
            logits = self.lm.forward(tokens[None], **without_cache(self.lm)).logits[0, :-1]
        return (logits.float() / temperature).log_softmax(dim=-1).gather(1, tokens[1:, None])[:, 0]
