"""Networks that return one number per position or per sequence: the reward model and the critic.

Both are a transformers sequence classifier. If its head can be applied to the state of a token, it is read at chosen
positions of packed rows; any other classifier (for example an encoder with a pooler) runs its own forward pass.

Shapes: N tokens in the row, B sequences, K positions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import deepspeed
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from rlhf.models.classifier import head_names
from rlhf.models.packed_row import PackedRow, pad_rows
from rlhf.models.sequence_parallel import RowNet

Reader = Literal["head", "own", "own_alone"]
"""Scoring method of a classifier: its head at positions of the rows, its own forward pass over padded rows, or its own
forward pass over one sequence at a time."""


class ScalarNet(RowNet):
    """A sequence classifier read at chosen positions of a packed row, or at the end of each of its sequences.

    ``label`` is the index of the logit that is the score.
    """

    def __init__(self, classifier: PreTrainedModel, label: int = 0) -> None:
        attention = classifier.config._attn_implementation
        super().__init__(classifier)
        self.classifier, self.label = classifier, label
        self.reader: Reader = "head"
        self.has_segments = False
        """Whether response tokens are the second segment of a text pair (token_type_ids)."""
        self._attentions = {"head": classifier.config._attn_implementation, "own": attention, "own_alone": attention}
        heads = [getattr(classifier, name) for name in head_names(classifier)]
        self._head = heads if len(heads) == 1 else []  # a list, so that torch does not register it as a second child
        for module in heads:
            _compute_in_float32(module)

    @property
    def model(self) -> PreTrainedModel:
        """The sequence classifier."""
        return self.classifier

    @property
    def has_head(self) -> bool:
        """Whether the classifier consists of a backbone and one module after it."""
        return bool(self._head)

    @property
    def positions(self) -> int:
        """Number of learned positions, if they begin after the padding token (RoBERTa); otherwise no limit."""
        rows = getattr(self.classifier.config.get_text_config(), "max_position_embeddings", None)
        begin = [
            module.padding_idx + 1
            for module in self.classifier.modules()
            if isinstance(module, nn.Embedding)
            and module is not self.classifier.get_input_embeddings()
            and module.padding_idx is not None
            and module.num_embeddings == rows
        ]
        return rows - max(begin) if rows is not None and begin else 2**31

    def use(self, reader: Reader) -> None:
        """Select how the classifier is read from now on."""
        self.reader = reader
        if self.classifier.config._attn_implementation != self._attentions[reader]:
            self.classifier.set_attn_implementation(self._attentions[reader])

    def external_parameters(self) -> list[nn.Parameter]:
        """Parameters used outside their own module's forward pass, to be registered with ZeRO-3."""
        return []

    def forward(self, row: PackedRow, positions: Tensor | None = None, states: bool = False) -> Tensor:
        """Scalars in float32: (K,) at ``positions`` of the row, or (B,), one per sequence, without positions.

        V(s_t) before each response token is read at ``row.predict_at``. The head computes in float32: in bfloat16,
        rewards near 4 would be 1/64 apart. With ``states``: (K, d), the backbone's last hidden states.
        """
        if positions is None and self.reader != "head":
            return self._own_forward(row)
        reading = self.read(row, self._ends(row) if positions is None else positions)
        if states:
            return reading.hidden
        return reading.gather(self._head[0](reading.hidden)[:, self.label])

    @property
    def _padding(self) -> int | None:
        """The padding token, which transformers' decoder classifiers skip when they search for a sequence's end."""
        token: int | None = getattr(self.classifier.config.get_text_config(), "pad_token_id", None)
        return token

    def _ends(self, row: PackedRow) -> Tensor:
        """(B,) position of each sequence's last token that is not padding; its first if all are padding."""
        if self._padding is None or not len(row.last):
            return row.last
        lengths = torch.tensor(row.lengths, device=row.last.device)
        positions = torch.arange(row.tokens.shape[1], device=row.last.device)
        kept = positions.where(row.tokens[0] != self._padding, -1)
        indices = torch.arange(len(lengths), device=row.last.device)
        sequence = indices.repeat_interleave(lengths, output_size=len(positions))  # known size: no wait for the device
        first = row.last + 1 - lengths
        return first.scatter_reduce(0, sequence, kept, "amax")

    def _own_forward(self, row: PackedRow) -> Tensor:
        """(B,) logits of the label from the classifier's own forward pass."""
        known = inspect.signature(self.classifier.forward).parameters
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
        has_segments = self.has_segments and "token_type_ids" in known
        logits = []
        for tokens, mask, segments in self._batches(row):
            if has_segments:
                options["token_type_ids"] = segments
            logits.append(self.classifier(input_ids=tokens, attention_mask=mask, **options).logits[:, self.label])
        return torch.cat(logits).float()[: len(row.last)]

    def _batches(self, row: PackedRow) -> Iterator[tuple[Tensor, ...]]:
        """(b, L) tokens, attention mask and segments: of all sequences at once, or of one after another."""
        segments = torch.zeros_like(row.tokens[0])
        segments[row.predict_at + 1] = 1
        fillers = ((row.tokens[0], self._padding or 0), (torch.ones_like(segments), 0), (segments, 0))
        if self.reader == "own_alone":
            parts = (values.split(list(row.lengths)) for values, _ in fillers)
            yield from (tuple(part[None] for part in sequence) for sequence in zip(*parts, strict=True))
        else:
            yield tuple(pad_rows(values, row.lengths, max(row.lengths), filler) for values, filler in fillers)


def _compute_in_float32(head: nn.Module) -> None:
    """Make the head's linear layers and norms compute in float32, whatever the dtype of their weights."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            module.forward = partial(_linear, module)
        elif isinstance(module, nn.LayerNorm):
            module.forward = partial(_layer_norm, module)


def _linear(layer: nn.Linear, values: Tensor) -> Tensor:
    return functional.linear(values.float(), layer.weight.float(), _float(layer.bias))


def _layer_norm(layer: nn.LayerNorm, values: Tensor) -> Tensor:
    weight, bias = _float(layer.weight), _float(layer.bias)
    return functional.layer_norm(values.float(), layer.normalized_shape, weight, bias, layer.eps)


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def init_reward_head(classifier: PreTrainedModel, seed: int) -> None:
    """Draw the head from N(0, 1/(d + 1)), so that first rewards are of order one (Stiennon et al. 2020, appendix)."""
    width = _linear_head(classifier).in_features
    noise = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width + 1)
    _set_head(classifier, noise)


def init_value_head(classifier: PreTrainedModel) -> None:
    """Set the critic's head to zero: the first values are 0, neither saturated nor biased (Huang et al. 2024)."""
    _set_head(classifier, torch.zeros(1, _linear_head(classifier).in_features))


def _linear_head(classifier: PreTrainedModel) -> nn.Linear:
    [name] = head_names(classifier)
    head = getattr(classifier, name)
    assert isinstance(head, nn.Linear)  # require_backbone refuses other heads
    return head


def _set_head(classifier: PreTrainedModel, value: Tensor) -> None:
    """Set the head's weight, and its bias to zero where there is one."""
    head = _linear_head(classifier)
    tensors = list(head.parameters())
    with (
        deepspeed.zero.GatheredParameters(tensors, modifier_rank=0, enabled=hasattr(head.weight, "ds_id")),
        torch.no_grad(),
    ):
        head.weight.copy_(value)
        if head.bias is not None:
            head.bias.zero_()
