"""Whether a checkpoint and the network that was made from it have the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlhf.errors import UserError

SHOWN = 3
"""Names in a message."""
UNUSED = "unused_tensors"
"""Attribute of a loaded model: names of its folder's tensors that it has no use for."""


def check_complete(
    folder: str | Path, model: PreTrainedModel, info: Mapping[str, Any], is_needed: Callable[[str], bool]
) -> None:
    """Compare the tensors that a folder has with those that the model has, and keep the names of the idle ones.

    Args:
        info: what transformers says of the loading.
        is_needed: whether a tensor of this name has to come from the folder.

    Raises:
        UserError: a needed tensor is missing, one has another shape, one belongs to a layer of the model that does
            without it, or the output head is not the embedding although config.json says so.
    """
    what, kind = f"the model in {folder}", type(model).__name__
    missing = sorted(filter(is_needed, info["missing_keys"]))
    if missing:
        raise UserError(
            f"{what} lacks {_some(missing)}",
            f"{kind} needs them, and in their place it would compute with random numbers",
            "give a complete model of this kind; a reward model or a bare backbone is no language model",
        )
    reshaped = sorted(filter(is_needed, (str(name) for name, *_ in info["mismatched_keys"])))
    if reshaped:
        raise UserError(
            f"{what} has {_some(reshaped)} in other shapes than its config.json says",
            "they cannot be loaded",
            "mend config.json, or give the model that belongs to it",
        )
    layers = dict(model.named_modules())
    unused = sorted(info["unexpected_keys"])
    ignored = [name for name in unused if is_needed(name) and _belongs(name, layers)]
    if ignored:
        raise UserError(
            f"{what} has {_some(ignored)}, which its config.json does not ask for",
            f"{kind} would compute without them, and so be another model",
            "mend config.json (biases, norms), or give the model that belongs to it",
        )
    if _has_head_of_its_own(model):
        raise UserError(
            f"{what} has an output head that differs from its embedding, and its config.json ties the two",
            "transformers would compute with the head, and an inference engine with the embedding",
            "set tie_word_embeddings to false in config.json, or remove the head's tensor from the checkpoint",
        )
    setattr(model, UNUSED, tuple(unused))


def unused_tensors(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the folder's tensors that the model has no use for."""
    return getattr(model, UNUSED, ())


def _has_head_of_its_own(model: PreTrainedModel) -> bool:
    """Whether the configuration ties the output head to the embedding, and the checkpoint had another tensor for it."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False) and bool(model._tied_weights_keys)
    return is_tied and head is not None and head.weight is not embedding.weight


def _belongs(name: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether the tensor is one of a layer that has other parameters."""
    layer = layers.get(name.rpartition(".")[0])
    return layer is not None and next(layer.parameters(recurse=False), None) is not None


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more tensors" if more > 0 else "")
