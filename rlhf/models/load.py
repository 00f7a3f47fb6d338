"""Loads models from folders or hubs. Safetensors only; nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from rlhf.config.schema import ModelConfig
from rlhf.models.complete import check_complete
from rlhf.models.folder import from_folder, read_settings
from rlhf.models.lora import add_adapters

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REWARD_SHIFT = "rlhf_reward_shift"
"""Key in a reward model's config.json: added to its raw output, so that demonstrations score 0 on average."""


def load_causal(folder: str | Path, config: ModelConfig) -> PreTrainedModel:
    """Load a causal language model with dropout off, in the recipe's dtype.

    Raises:
        UserError: it cannot be loaded, or tensors are missing.
    """
    return _load_network(AutoModelForCausalLM, folder, config, _load_settings(folder, config))


def load_policy(folder: str | Path, config: ModelConfig, seed: int) -> PreTrainedModel:
    """Load the policy for training: the whole model, or with the recipe's adapters, initialised from ``seed``.

    Raises:
        UserError: it cannot be loaded, or has no layer that an adapter target names.
    """
    model = load_causal(folder, config)
    if config.lora is not None:
        add_adapters(model, config.lora, seed)
    return model


def load_classifier(
    folder: str | Path, config: ModelConfig, architecture: Any = AutoModelForSequenceClassification, own: bool = False
) -> PreTrainedModel:
    """Load a sequence classifier with dropout off.

    Args:
        folder: the model's folder or hub name.
        config: how models are loaded.
        architecture: the class that loads it.
        own: keep the folder's labels and padding token, which determines the token that its head reads. Otherwise the
            classifier has one label; from a causal model's folder its head is new and must be initialised.
    """
    settings = classifier_settings(folder, config, own)
    return _load_network(architecture, folder, config, settings, head_is_new=not own)


def classifier_settings(folder: str | Path, config: ModelConfig, own: bool) -> PreTrainedConfig:
    """Configuration with which ``load_classifier`` loads a folder."""
    if own:
        return _load_settings(folder, config)
    settings = _load_settings(folder, config, num_labels=1)
    text, tokenizer = settings.get_text_config(), from_folder(AutoTokenizer, folder, config)
    ends = {tokenizer.eos_token_id, *_ids(getattr(text, "eos_token_id", None))}
    own_pad = getattr(text, "pad_token_id", None)
    pad = tokenizer.pad_token_id if own_pad is None else own_pad
    # A classifier reads its score at the last token that is not padding, so padding must not be an end token.
    text.pad_token_id = None if pad in ends else pad
    _drop_absent_padding(settings)
    return settings


def reward_shift(classifier: PreTrainedModel) -> float:
    """Constant added to the reward model's raw output; 0 for models trained elsewhere."""
    return float(getattr(classifier.config, REWARD_SHIFT, 0.0))


def _load_settings(folder: str | Path, config: ModelConfig, **extra: Any) -> PreTrainedConfig:
    """A model's configuration with dropout off and without a padding token outside its embedding."""
    settings: PreTrainedConfig = read_settings(folder, config, **extra)
    for key in [k for k in settings.to_dict() if "dropout" in k or "pdrop" in k]:
        if isinstance(getattr(settings, key, None), float):
            setattr(settings, key, 0.0)
    _drop_absent_padding(settings)
    return settings


def _drop_absent_padding(settings: PreTrainedConfig) -> None:
    """Remove a padding token outside the embedding, which PyTorch rejects."""
    text = settings.get_text_config()
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if pad is not None and rows is not None and not 0 <= pad < rows:
        text.pad_token_id = None


def _ids(named: int | list[int] | None) -> list[int]:
    return named if isinstance(named, list) else [] if named is None else [named]


def _load_network(
    auto: Any, folder: str | Path, config: ModelConfig, settings: PreTrainedConfig, head_is_new: bool = False
) -> PreTrainedModel:
    options = {
        "config": settings,
        "dtype": DTYPES[config.dtype],
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # refused below, by name
    }
    model, info = from_folder(auto, folder, config, **options)
    needed = f"{model.base_model_prefix}." if head_is_new else ""
    check_complete(folder, model, info, lambda name: name.startswith(needed))
    _rotate_in_float32(model)
    switch_dropout_off(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _rotate_in_float32(model: PreTrainedModel) -> None:
    """Recompute rotary frequencies in float32 if they were rounded.

    Under ZeRO-3 buffers are created in the model's dtype; in bfloat16 the error grows with the position.
    """
    for module in model.modules():
        frequencies = getattr(module, "original_inv_freq", None)
        if isinstance(frequencies, Tensor) and frequencies.dtype != torch.float32:
            module.inv_freq, module.original_inv_freq = module.inv_freq.float(), frequencies.float()
            model._init_weights(module)


def switch_dropout_off(model: nn.Module) -> None:
    """Zero every dropout: with it on, the ratio of the first pass is not 1 (Huang et al. 2024)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
