"""Networks that answer with one number per place: the reward model and the critic.

Both are a transformers sequence classifier with one label: a backbone and a linear ``score`` head without bias.
"""

from __future__ import annotations

import math

import deepspeed
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from rlhf.models.packed_row import PackedRow
from rlhf.models.shared_row import RowNet


class ScalarNet(RowNet):
    """A sequence classifier read at chosen places of a packed row."""

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__(classifier)
        self.classifier = classifier

    @property
    def model(self) -> PreTrainedModel:
        """The sequence classifier."""
        return self.classifier

    def external_parameters(self) -> list[nn.Parameter]:
        """Parameters used outside their own module's forward pass; ZeRO-3 must be told of them."""
        return [self.classifier.score.weight]

    def forward(self, row: PackedRow, places: Tensor) -> Tensor:
        """Scalars at ``places`` (K,) of the row → (K,), float32.

        The reward of a response is read at its last token (``row.last``); V(s_t) before each response token
        (``row.predict_at``). The head multiplies in float32: in bfloat16 rewards near 4 would be 1/64 apart.
        """
        reading = self.read(row, places)
        own = functional.linear(reading.hidden.float(), self.classifier.score.weight.float())[:, 0]
        return reading.whole(own)


def init_reward_head(classifier: PreTrainedModel, seed: int) -> None:
    """Draw the head from N(0, 1/(d + 1)), so that first rewards are of order one (Stiennon et al. 2020, appendix)."""
    width = classifier.config.hidden_size
    noise = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width + 1)
    _set_head(classifier, noise)


def init_value_head(classifier: PreTrainedModel) -> None:
    """Set the critic's head to zero: the first values are 0, neither saturated nor biased (Huang et al. 2024)."""
    _set_head(classifier, torch.zeros(1, classifier.config.hidden_size))


def _set_head(classifier: PreTrainedModel, value: Tensor) -> None:
    weight = classifier.score.weight
    with (
        deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")),
        torch.no_grad(),
    ):
        weight.copy_(value)
