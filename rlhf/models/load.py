"""Models from folders or hubs. Safetensors only; nothing is unpickled."""

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
    """A causal language model with dropout off, in the recipe's dtype.

    Raises:
        UserError: it cannot be loaded, or not whole.
    """
    return _load_network(AutoModelForCausalLM, folder, config, _settings(folder, config))


def load_policy(folder: str | Path, config: ModelConfig, seed: int) -> PreTrainedModel:
    """A causal language model to be trained: all of it, or the adapters that the recipe asks for, drawn from ``seed``.

    Raises:
        UserError: it cannot be loaded, or has no layer of a name that adapters are asked for.
    """
    model = load_causal(folder, config)
    if config.lora is not None:
        add_adapters(model, config.lora, seed)
    return model


def load_classifier(
    folder: str | Path, config: ModelConfig, architecture: Any = AutoModelForSequenceClassification, own: bool = False
) -> PreTrainedModel:
    """A sequence classifier, dropout off.

    Args:
        folder: the model's folder or hub name.
        config: how models are loaded.
        architecture: the class that loads it.
        own: keep the folder's labels and padding token, and with them the token that its head reads. Otherwise it has
            one label; from a causal model's folder the head is new and must be initialised.
    """
    settings = classifier_settings(folder, config, own)
    return _load_network(architecture, folder, config, settings, head_is_new=not own)


def classifier_settings(folder: str | Path, config: ModelConfig, own: bool) -> PreTrainedConfig:
    """The config of ``load_classifier``."""
    if own:
        return _settings(folder, config)
    settings = _settings(folder, config, num_labels=1)
    text, tokenizer = settings.get_text_config(), from_folder(AutoTokenizer, folder, config)
    ends = {tokenizer.eos_token_id, *_ids(getattr(text, "eos_token_id", None))}
    own_pad = getattr(text, "pad_token_id", None)
    pad = tokenizer.pad_token_id if own_pad is None else own_pad
    # A classifier's score is read at the last token that is no padding: an end token must not be that.
    text.pad_token_id = None if pad in ends else pad
    _drop_absent_padding(settings)
    return settings


def reward_shift(classifier: PreTrainedModel) -> float:
    """What is added to the model's raw output; 0 for a model that was made elsewhere."""
    return float(getattr(classifier.config, REWARD_SHIFT, 0.0))


def _settings(folder: str | Path, config: ModelConfig, **extra: Any) -> PreTrainedConfig:
    """A model's config with dropout off and no padding token that its embedding lacks."""
    settings: PreTrainedConfig = read_settings(folder, config, **extra)
    for key in [k for k in settings.to_dict() if "dropout" in k or "pdrop" in k]:
        if isinstance(getattr(settings, key, None), float):
            setattr(settings, key, 0.0)
    _drop_absent_padding(settings)
    return settings


def _drop_absent_padding(settings: PreTrainedConfig) -> None:
    """PyTorch makes no embedding whose padding token is outside of it."""
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
    """Compute rotary frequencies anew where they were rounded.

    Under ZeRO-3 buffers are made in the model's dtype; in bfloat16 that moves positions, the farther the more.
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
