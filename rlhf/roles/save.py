"""Saves a model under DeepSpeed as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel

from rlhf.models.lora import adapter_settings, adapter_tensors
from rlhf.zero.engine import ZeroEngine

ADAPTER = "adapter"
"""Subfolder of a model's folder that holds its adapter."""


def save_model(engine: ZeroEngine, model: PreTrainedModel, folder: Path, **config: Any) -> None:
    """Write weights (safetensors) and config with the entries ``config`` added (collective; rank 0 writes).

    Adapters are merged into the weights, and also written separately to ``adapter``, in PEFT's format.
    """
    state = {}
    for name, tensor in engine.full_state(model):
        if engine.rank == 0:
            state[name] = tensor
    if engine.rank == 0:
        for key, value in config.items():
            setattr(model.config, key, value)
        model.save_pretrained(folder, state_dict=state)
    _save_adapter(engine, model, folder / ADAPTER)


def _save_adapter(engine: ZeroEngine, model: PreTrainedModel, folder: Path) -> None:
    settings, tensors = adapter_settings(model), adapter_tensors(model)
    if settings is None:
        return
    with engine.full(list(tensors.values())):
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if engine.rank == 0:
            settings.save_pretrained(str(folder))
            save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
