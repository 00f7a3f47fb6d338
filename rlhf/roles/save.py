"""A model under DeepSpeed back to a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from rlhf.zero.engine import ZeroEngine


def save_model(engine: ZeroEngine, model: PreTrainedModel, folder: Path, **config: Any) -> None:
    """Write weights (safetensors) and config, with ``config`` entries added. All ranks gather; rank 0 writes."""
    state = {}
    for name, tensor in engine.full_state(model):
        if engine.rank == 0:
            state[name] = tensor
    if engine.rank == 0:
        for key, value in config.items():
            setattr(model.config, key, value)
        model.save_pretrained(folder, state_dict=state)
