"""Makes a tokenizer deterministic: BPE dropout gives the same text other tokens each time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "The naïve fox was asked repeatedly: what would another unremarkable sentence cost, roughly 1,234.50? " * 8
_ATTEMPTS = 4


def switch_dropout_off(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> str:
    """Switch a tokenizer's BPE dropout off, in place; returns a remark, empty if it had none.

    With dropout the tokens of a prompt differ between stages and between the trainer and the engine.

    Raises:
        UserError: the tokenizer still encodes a text in several ways.
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    dropout = getattr(model, "dropout", None)
    if model is not None and dropout:
        model.dropout = None
    first, *others = (tokenizer(_PROBE, add_special_tokens=False, verbose=False)["input_ids"] for _ in range(_ATTEMPTS))
    if any(other != first for other in others):
        raise UserError(
            f"the tokenizer of {str(folder)!r} gives the same text other tokens each time",
            "it samples among segmentations, so a text would differ between stages and between trainer and engine",
            "set dropout to null in the model of tokenizer.json, or leave enable_sampling out of sp_model_kwargs in "
            "tokenizer_config.json",
        )
    return f"BPE dropout of {dropout:g} in tokenizer.json is switched off" if dropout else ""
