"""Checks that a checkpoint and the network loaded from it have the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.errors import UserError

SHOWN = 3
"""Number of names in a message."""
UNUSED = "unused_tensors"
"""Attribute of a loaded model: names of tensors in its folder that it does not use."""


def check_complete(
    folder: str | Path, model: PreTrainedModel, info: Mapping[str, Any], is_needed: Callable[[str], bool]
) -> None:
    """Compare the tensors of a folder with those of the loaded model, and record the unused ones on the model.

    Args:
        info: transformers' loading info.
        is_needed: whether the tensor of this name has to come from the folder.

    Raises:
        UserError: a needed tensor is missing or has another shape, the model omits a layer of the folder or a tensor
            of a layer, or the output head differs from the embedding although config.json ties them.
    """
    what, kind = f"the model in {folder}", type(model).__name__
    missing = sorted(filter(is_needed, info["missing_keys"]))
    if missing:
        raise UserError(
            f"{what} lacks {_listed(missing)}",
            f"{kind} needs them, and would compute with random values instead",
            "give a complete model of this kind; a reward model or a bare backbone is no language model",
        )
    reshaped = sorted(filter(is_needed, (str(name) for name, *_ in info["mismatched_keys"])))
    if reshaped:
        raise UserError(
            f"{what} has {_listed(reshaped)} in other shapes than its config.json says",
            "they cannot be loaded",
            "fix config.json, or give the model that belongs to it",
        )
    layers = dict(model.named_modules())
    unused = sorted(info["unexpected_keys"])
    omitted = [name for name in unused if is_needed(name) and _repeats_layer(name, layers)]
    if omitted:
        raise UserError(
            f"{what} has {_listed(omitted)}, of layers beyond the number in its config.json",
            f"{kind} would compute without these layers, and would be another model",
            "correct the number of layers in config.json, or give the model that belongs to it",
        )
    ignored = [name for name in unused if is_needed(name) and _extends_layer(name, layers)]
    if ignored:
        raise UserError(
            f"{what} has {_listed(ignored)}, which its config.json does not declare",
            f"{kind} would compute without them, and would be another model",
            "fix config.json (biases, norms), or give the model that belongs to it",
        )
    if _has_untied_head(folder, model):
        raise UserError(
            f"{what} has an output head that differs from its embedding, and its config.json ties the two",
            "transformers would compute with the head, and an inference engine with the embedding",
            "set tie_word_embeddings to false in config.json, or remove the head's tensor from the checkpoint",
        )
    setattr(model, UNUSED, tuple(unused))


def unused_tensors(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of tensors in the model's folder that the model does not use."""
    return getattr(model, UNUSED, ())


def _has_untied_head(folder: str | Path, model: PreTrainedModel) -> bool:
    """Whether the configuration ties the output head to the embedding, but the checkpoint has another tensor for it.

    transformers keeps the two apart if they differ, unless ZeRO-3 has partitioned them: of partitioned parameters it
    compares empty tensors. So the files are compared too.
    """
    tied: Mapping[str, str] = model._tied_weights_keys or {}
    if not tied or not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return False
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return (head is not None and head.weight is not embedding.weight) or _differ_in_files(Path(folder), tied)


def _differ_in_files(folder: Path, tied: Mapping[str, str]) -> bool:
    """Whether the folder's files have two tensors of a tied pair, and these differ."""
    files: dict[str, Path] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            files |= dict.fromkeys(tensors.keys(), path)

    def read(name: str) -> Tensor:
        with safe_open(files[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    return any(not torch.equal(read(a), read(b)) for a, b in tied.items() if a in files and b in files)


def _repeats_layer(name: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether the tensor belongs to a further layer of one of the model's lists of layers."""
    parts = name.split(".")
    lists = ((layers.get(".".join(parts[:i])), int(part)) for i, part in enumerate(parts) if part.isdecimal())
    return any(isinstance(found, nn.ModuleList) and number >= len(found) for found, number in lists)


def _extends_layer(name: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether the tensor's layer exists in the model and has other parameters."""
    layer = layers.get(name.rpartition(".")[0])
    return layer is not None and next(layer.parameters(recurse=False), None) is not None


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more tensors" if more > 0 else "")
