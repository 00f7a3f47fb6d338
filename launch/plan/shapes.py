"""A model's shape: its parameters, counted, and the sizes from which activations and KV cache follow.

transformers builds the network on PyTorch's meta device, where weights take no memory, and the network is counted. This
takes seconds, mostly to import PyTorch and transformers, so both are imported only here and only when needed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlhf.config.schema import ScratchConfig
from rlhf.errors import UserError, first_line
from rlhf.placement.parallelism import TENSOR_PARALLEL_TYPES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Kind = Literal["gated", "neox", "gpt2"]
SPLIT = re.compile(r"\.layers\.\d+\.\w+\.(?:(?:[qkv]|gate|up)_proj\.(?:weight|bias)|(?:o|down)_proj\.weight)$")
"""Tensors that ``rlhf/zero/tensor_parallel.py`` splits, in models of ``TENSOR_PARALLEL_TYPES``."""
LAYER = re.compile(r"\.\d+\.")
"""Number of a decoder layer in the name of a tensor; the first such number."""
WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
"""Configuration keys, over architectures, for the width of the feed-forward block."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""The same for the number of experts of a layer."""


class Linear(NamedTuple):
    """A linear layer that can have an adapter, in every decoder layer that contains it."""

    name: str
    """Name of the module, with ``*`` for the layer's number."""
    inputs: int
    outputs: int
    number: int
    """Number of such layers in the model."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a causal language model."""

    name: str
    kind: Kind
    """The measured structure of layers that is closest to this model's; see ``saved_activations``."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the feed-forward blocks that a token passes in one layer."""
    vocab: int
    context: int
    tied: bool
    """Whether embedding and output head share one matrix."""
    parameters: int
    """Parameters of the language model."""
    backbone: int
    """Parameters without a separate output head."""
    layer: int
    """Parameters of the largest decoder layer."""
    matrices: int
    """Parameters of the decoder layers' matrices; of experts, only as many as process a token. A token's forward pass
    takes 2 FLOPs for each."""
    split: int
    """Parameters that tensor parallelism divides over ranks; 0 if it does not support the model's type."""
    linears: tuple[Linear, ...]

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding, which equal those of the output head."""
        return self.vocab * self.hidden

    @property
    def classifier(self) -> int:
        """Parameters of the same backbone with one label: a reward model or a critic."""
        return self.backbone + self.hidden

    def adapters(self, rank: int, targets: Sequence[str]) -> int:
        """Parameters of LoRA's A and B over the layers in ``targets``."""
        return rank * sum(
            linear.number * (linear.inputs + linear.outputs)
            for linear in self.linears
            if any(target == "all-linear" or f".{linear.name}".endswith(f".{target}") for target in targets)
        )

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers but the output head, without biases."""
        return sum(linear.number * linear.inputs * linear.outputs for linear in self.linears)

    def kv_bytes(self, size: int, shards: int = 1) -> int:
        """KV cache bytes per token on each of ``shards`` GPUs, at ``size`` bytes per number; heads are not split."""
        return 2 * self.layers * -(-self.kv_heads // shards) * self.head_dim * size


def count_shape(config: PreTrainedConfig, name: str) -> ModelShape:
    """Build the model that a configuration describes, without weights, and count it.

    Raises:
        UserError: transformers cannot build it as a causal language model, or it has no attention heads.
    """
    model, text = _build(config, name), config.get_text_config()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    heads, hidden = getattr(text, "num_attention_heads", None), text.hidden_size
    if not heads:
        what = f"the model {name!r} has no attention heads"
        raise UserError(what, "the plan computes KV cache and attention", "plan with an attention model of its size")
    tensors = dict(model.named_parameters())
    layers: Counter[str] = Counter()
    for path, tensor in tensors.items():
        if number := LAYER.search(path):
            layers[path[: number.end()]] += tensor.numel()
    return ModelShape(
        name=name,
        kind=_kind(text, tensors),
        layers=text.num_hidden_layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(text, heads),
        head_dim=getattr(text, "head_dim", None) or hidden // heads,
        intermediate=_intermediate(text),
        vocab=text.vocab_size,
        context=getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None) or 2**31,
        tied=head.weight is embedding.weight,
        parameters=model.num_parameters(),
        backbone=model.base_model.num_parameters(),
        layer=max(layers.values()),
        matrices=_matrices(tensors, text),
        split=sum(tensor.numel() for path, tensor in tensors.items() if SPLIT.search(path))
        if text.model_type in TENSOR_PARALLEL_TYPES
        else 0,
        linears=_linears(model, head),
    )


def _build(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # nothing but the configuration can be wrong
        raise UserError(
            f"the config of {name!r} describes no causal language model that transformers can build",
            first_line(error),
            "give the config.json that came with the model, or plan with a model of its size",
        ) from error


def _kind(text: Any, names: Any) -> Kind:
    if any("gate_proj" in name or "gate_up_proj" in name for name in names):
        return "gated"
    activation = getattr(text, "activation_function", None) or getattr(text, "hidden_act", None)
    return "gpt2" if activation == "gelu_new" else "neox"


def _kv_heads(text: Any, heads: int) -> int:
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    return getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None) or heads


def _intermediate(text: Any) -> int:
    given = (getattr(text, key, None) for key in WIDTHS)
    dense = next((width for width in given if isinstance(width, int)), 4 * text.hidden_size)
    chosen = getattr(text, "num_experts_per_tok", None) or 1
    return max(dense, chosen * (getattr(text, "moe_intermediate_size", None) or dense))


def _matrices(tensors: dict[str, Any], text: Any) -> int:
    experts = next((number for key in EXPERTS if (number := getattr(text, key, None))), 1)
    chosen = getattr(text, "num_experts_per_tok", None) or experts
    inside = {path: tensor.numel() for path, tensor in tensors.items() if tensor.ndim > 1 and LAYER.search(path)}
    return sum(size * chosen // experts if ".experts." in path else size for path, size in inside.items())


def _linears(model: PreTrainedModel, head: Any) -> tuple[Linear, ...]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found: Counter[tuple[str, int, int]] = Counter()
    for path, module in model.named_modules():
        if module is not head and isinstance(module, nn.Linear | Conv1D):
            outputs, inputs = module.weight.shape if isinstance(module, nn.Linear) else reversed(module.weight.shape)
            found[LAYER.sub(".*.", path), inputs, outputs] += 1
    return tuple(Linear(*key, count) for key, count in found.items())


@cache
def scratch_shape(config: ScratchConfig) -> ModelShape:
    """The shape of a randomly initialised model, with the largest vocabulary that it may get."""
    from transformers import LlamaConfig

    made = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=config.tie_embeddings,
    )
    return count_shape(made, "model.scratch")
