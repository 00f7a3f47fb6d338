"""Model FLOPs: the operations that a pass over a model needs, whatever the hardware does besides.

The convention of PaLM (Chowdhery et al. 2022, appendix B), with each part counted where it is: two FLOPs for each
number of a matrix and token, forward; as many again backward for the gradient of the input, and again for that of the
matrix, where it is trained. Attention makes two products of queries, keys and values over the tokens that each token
sees. What is computed twice to save memory (checkpointed layers, logits) counts once. Embeddings are looked up; norms,
softmax and the optimizer are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

ATTENDING = ("full_attention", "sliding_attention", "chunked_attention", "attention")
"""Names, in ``layer_types``, of layers in which tokens see each other by attention."""
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Names that configurations have for the experts that see a token, and for all of a layer's."""


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """What one model costs a token. Counts of parameters are of whole matrices, over all ranks."""

    body: float
    """Numbers of matrices that every token is multiplied with; of experts those that see it."""
    body_trained: float
    """Those of them that are trained."""
    head: float
    """Numbers of the output head, which only predicted tokens are multiplied with."""
    head_trained: float
    attention: tuple[tuple[int, int | None], ...]
    """Of each layer with attention: width of all its heads together, and how far a token sees; None: to the start."""

    @classmethod
    def of(cls, model: PreTrainedModel, whole_shape: Callable[[Tensor], Sequence[int]]) -> ModelFlops:
        """Count a model's matrices. An output head may share its matrix with the embedding; a classifier has none.

        Args:
            whole_shape: the shape of a tensor of which this rank may hold a part.
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
        """FLOPs of a pass over sequences of these lengths, with the head's for ``predicted`` of their tokens."""
        return 2 * self.body * float(np.sum(lengths)) + 2 * self.head * predicted + self._attention(lengths)

    def training(self, lengths: Sequence[int] | np.ndarray, predicted: int) -> float:
        """FLOPs of an update on these sequences: forward, and backward without the gradients of frozen matrices."""
        weights = 2 * self.body_trained * float(np.sum(lengths)) + 2 * self.head_trained * predicted
        matrices = 4 * self.body * float(np.sum(lengths)) + 4 * self.head * predicted
        return matrices + weights + 3 * self._attention(lengths)

    def _attention(self, lengths: Sequence[int] | np.ndarray) -> float:
        """Of a forward pass: four FLOPs for each number of the heads and each pair of a token and one that it sees."""
        n = np.asarray(lengths, dtype=np.float64)
        total = 0.0
        for width, window in self.attention:
            seen = n if window is None else np.minimum(n, window)
            total += 4 * width * float((seen * (seen + 1) / 2 + (n - seen) * seen).sum())
        return total


def _text_config(model: PreTrainedModel) -> PreTrainedConfig:
    return model.config.get_text_config()


def _first(config: PreTrainedConfig, names: Sequence[str]) -> float | None:
    return next((float(value) for name in names if isinstance(value := getattr(config, name, None), int)), None)


def _active_experts(config: PreTrainedConfig) -> float:
    """Share of a layer's experts that see a token."""
    used, there = _first(config, EXPERTS_PER_TOKEN), _first(config, EXPERTS)
    return 1.0 if not used or not there else min(1.0, used / there)


def _attention_layers(config: PreTrainedConfig) -> tuple[tuple[int, int | None], ...]:
    """Width and window of each layer that has attention; none for a model without it, or that says it otherwise."""
    heads, layers = _first(config, ("num_attention_heads",)), _first(config, ("num_hidden_layers",))
    each, hidden = _first(config, ("head_dim",)), _first(config, ("hidden_size",))
    if not heads or not (each or hidden):  # none, or another for each layer: the matrices are most of it
        return ()
    width, seen = int(heads * each if each else hidden or 0), _first(config, ("sliding_window",))
    window = None if seen is None else int(seen)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return ((width, window),) * int(layers or 0)
    return tuple((width, None if kind == "full_attention" else window) for kind in kinds if kind in ATTENDING)
