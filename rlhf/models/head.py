"""Computes logits from the last hidden states of a causal language model, with the model's own code.

Many architectures do more here than one matrix product: Gemma 2 bounds the logits, Granite and Cohere scale them,
others transform the states first. So nothing is reimplemented: the model's own forward pass runs, and its backbone is
replaced by one that returns the given states.

Shapes: R positions, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from rlhf.models.packed_row import without_cache


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """The submodule that computes the last hidden states."""
    named: PreTrainedModel = model.base_model
    if named is not model:
        return named
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)


class _GivenStates(BaseModelOutputWithPast):
    """Backbone output with the last hidden states; every other field is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class OutputHead:
    """The part of a causal language model after its backbone."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self.lm = lm
        self.backbones = [module for module in lm.modules() if isinstance(module, PreTrainedModel) and module is not lm]
        """The backbone, and parts of it that the language model may call directly (OPT's decoder)."""
        self.options = without_cache(lm)
        self.vocabulary = int(lm.config.get_text_config().vocab_size)
        """Number of logits of a position; models that pad their embedding have slightly more."""
        inside = {id(part) for backbone in self.backbones for part in backbone.modules()} - {*map(id, self.backbones)}
        output = lm.get_output_embeddings()
        self.called = [part for part in lm.modules() if id(part) not in inside or part is output]
        """Modules that are called to compute logits."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, d) last hidden states → (R, V) logits, in the dtype that the model returns.

        The number of chunks depends on a rank's number of tokens, but ZeRO-3 requires equal numbers of module calls on
        all ranks. So its hooks are disabled here; the weights are gathered, because ``parameters`` are registered as
        external parameters.
        """
        tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        given = _GivenStates(last_hidden_state=hidden[None])
        with _forward_replaced(self.backbones, given), _without_hooks(self.called):
            logits: Tensor = self.lm.forward(tokens, **self.options).logits
        return logits.squeeze(0)  # unlike an index, its backward pass copies nothing

    def parameters(self) -> list[nn.Parameter]:
        """Parameters outside the backbone, and the output layer's, which may be tied to the backbone's embedding."""
        inside = {id(parameter) for parameter in backbone_of(self.lm).parameters()}
        own = [parameter for parameter in self.lm.parameters() if id(parameter) not in inside]
        known = {id(parameter) for parameter in own}
        return own + [p for p in self.lm.get_output_embeddings().parameters() if id(p) not in known]


@contextmanager
def _forward_replaced(modules: Sequence[nn.Module], output: _GivenStates) -> Iterator[None]:
    """Replace the forward passes of the modules by one that returns ``output``."""
    before = [module.__dict__.get("forward") for module in modules]

    def forward(*arguments: Any, **options: Any) -> _GivenStates:
        return output

    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own


@contextmanager
def _without_hooks(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Disable the modules' hooks within the block."""
    before = [(module._forward_pre_hooks, module._forward_hooks) for module in modules]
    for module in modules:
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, (first, last) in zip(modules, before, strict=True):
            module._forward_pre_hooks, module._forward_hooks = first, last
