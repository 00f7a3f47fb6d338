"""Frozen matrices in 4 bits (NF4 with double quantisation; QLoRA, Dettmers et al. 2023, section 3), by bitsandbytes.

A block of 64 weights has a scale, and 256 scales, stored in 8 bits, have one of their own. A layer computes with the
dequantised matrix, in the model's dtype. Imports bitsandbytes, which takes a second; ``stored.py`` does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import deepspeed
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.errors import UserError

KEY = "model.lora.quantization"


class NF4Linear(Linear4bit):
    """A linear layer with an NF4 matrix that never changes; its ``state_dict`` has weight and bias alone."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(
            layer.in_features, layer.out_features, bias=False, compute_dtype=layer.weight.dtype, device="meta"
        )
        data = layer.weight.detach()
        self.weight = Params4bit(data, requires_grad=False, quant_type="nf4", module=self).to(data.device)
        self.bias = layer.bias
        self.support_avx512bf16_for_cpu = False  # a faster layout, into which evaluation mode would repack the matrix

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)


def quantise(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> None:
    """Replace these linear layers of a model by NF4 layers, in place; shards of ZeRO-3 are gathered layer by layer.

    Args:
        layers: linear layers by name; those whose class computes more than a linear layer stay as they are.

    Raises:
        UserError: there are none, or the model keeps its matrices in a form that bitsandbytes does not quantise.
    """
    _check(model, layers)
    for name, layer in layers.items():
        if type(layer) is nn.Linear:
            with deepspeed.zero.GatheredParameters([layer.weight], enabled=hasattr(layer.weight, "ds_id")):
                model.set_submodule(name, NF4Linear(layer))


def _check(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> None:
    kind, fix = model.config.model_type, f"{KEY}=null, or a model of another type"
    if any(isinstance(layer, Conv1D) for layer in layers.values()):
        raise UserError(f"{KEY} = nf4 and a model of type {kind!r}", "its matrices are stored transposed", fix)
    experts = [name for name, weight in model.named_parameters() if weight.ndim > 2 and ".experts." in name]
    if experts:
        why = f"its experts ({experts[0]}) are tensors with three dimensions, and only linear layers are quantised"
        raise UserError(f"{KEY} = nf4 and a model of type {kind!r}", why, fix)
    if not any(type(layer) is nn.Linear for layer in layers.values()):
        raise UserError(f"{KEY} = nf4 and a model of type {kind!r}", "it has no linear layer", fix)
