"""Model FLOPs: the operations that a pass over a model requires, independent of the hardware's overhead.

The convention is that of PaLM (Chowdhery et al. 2022, appendix B), counted per part: two FLOPs per matrix element and
token in the forward pass, as many for the gradient of the input, and as many for the gradient of the matrix if it is
trained. Attention computes two products over the pairs of query and key. Recomputation to save memory (activation
checkpointing, logits) is not counted. Embedding lookups, norms, softmax and the optimizer are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

ATTENDING = ("full_attention", "sliding_attention", "chunked_attention", "attention")
"""Names, in ``layer_types``, of layers with attention."""
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Configuration keys for the number of experts per token, and for the number of experts of a layer."""


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """FLOPs of one model per token. Parameter counts are of whole matrices, over all ranks."""

    body: float
    """Matrix elements that multiply every token; of experts, the active ones."""
    body_trained: float
    """Trained elements of ``body``."""
    head: float
    """Matrix elements of the output head, which multiply predicted tokens only."""
    head_trained: float
    attention: tuple[tuple[int, int | None], ...]
    """For each attention layer: total width of its heads, and its window in tokens; None: no window."""

    @classmethod
    def of(cls, model: PreTrainedModel, whole_shape: Callable[[Tensor], Sequence[int]]) -> ModelFlops:
        """Count a model's matrices. An output head may share its matrix with the embedding; classifiers have none.

        Args:
            whole_shape: returns the unsharded shape of a tensor of which this rank may hold a shard.
        """
        looked_up = {id(weight) for m in model.modules() if isinstance(m, nn.Embedding) for weight in m.parameters()}
        head = model.get_output_embeddings()
        of_head = {} if head is None else {id(weight): weight for weight in head.parameters()}
        share, body, trained = _active_experts(_text_config(model)), 0.0, 0.0
        for name, weight in model.named_parameters():
            shape = whole_shape(weight)
            if len(shape) < 2 or id(weight) in looked_up or id(weight) in of_head:
                continue
            count = float(np.prod(shape)) * (share if ".experts." in name else 1.0)
            body, trained = body + count, trained + count * weight.requires_grad
        heads = [(float(np.prod(whole_shape(w))), w.requires_grad) for w in of_head.values() if len(whole_shape(w)) > 1]
        return cls(
            body=body,
            body_trained=trained,
            head=sum(count for count, _ in heads),
            head_trained=sum(count for count, is_trained in heads if is_trained),
            attention=_attention_layers(_text_config(model)),
        )

    def forward(self, lengths: Sequence[int] | np.ndarray, predicted: int) -> float:
        """FLOPs of a forward pass over sequences of these lengths, with the head applied to ``predicted`` tokens."""
        return 2 * self.body * float(np.sum(lengths)) + 2 * self.head * predicted + self._attention(lengths)

    def training(self, lengths: Sequence[int] | np.ndarray, predicted: int) -> float:
        """FLOPs of an update on these sequences: forward and backward, without weight gradients of frozen matrices."""
        weights = 2 * self.body_trained * float(np.sum(lengths)) + 2 * self.head_trained * predicted
        matrices = 4 * self.body * float(np.sum(lengths)) + 4 * self.head * predicted
        return matrices + weights + 3 * self._attention(lengths)

    def _attention(self, lengths: Sequence[int] | np.ndarray) -> float:
        """Forward FLOPs of attention: four per element of the heads and pair of query and visible key."""
        n = np.asarray(lengths, dtype=np.float64)
        total = 0.0
        for width, window in self.attention:
            seen = n if window is None else np.minimum(n, window)
            total += 4 * width * float((seen * (seen + 1) / 2 + (n - seen) * seen).sum())
        return total


def _text_config(model: PreTrainedModel) -> PreTrainedConfig:
    return model.config.get_text_config()


def _first_number(config: PreTrainedConfig, names: Sequence[str]) -> float | None:
    return next((float(value) for name in names if isinstance(value := getattr(config, name, None), int)), None)


def _active_experts(config: PreTrainedConfig) -> float:
    """Fraction of a layer's experts that are active for a token."""
    used, there = _first_number(config, EXPERTS_PER_TOKEN), _first_number(config, EXPERTS)
    return 1.0 if not used or not there else min(1.0, used / there)


def _attention_layers(config: PreTrainedConfig) -> tuple[tuple[int, int | None], ...]:
    """Width and window of each attention layer; empty if the configuration does not state them."""
    heads, layers = _first_number(config, ("num_attention_heads",)), _first_number(config, ("num_hidden_layers",))
    each, hidden = _first_number(config, ("head_dim",)), _first_number(config, ("hidden_size",))
    if not heads or not (each or hidden):  # no attention, or heads that differ by layer: the matrices dominate
        return ()
    width, seen = int(heads * each if each else hidden or 0), _first_number(config, ("sliding_window",))
    window = None if seen is None else int(seen)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return ((width, window),) * int(layers or 0)
    return tuple((width, None if kind == "full_attention" else window) for kind in kinds if kind in ATTENDING)
