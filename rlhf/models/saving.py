"""Whether what a finished stage writes beside the weights can be written: tried before training, by writing it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from transformers import GenerationConfig

from rlhf.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def try_saving(model: PreTrainedModel) -> tuple[str, ...]:
    """Write all of a model but its weights to a folder that is removed again; returns what was mended for it.

    Raises:
        UserError: it cannot be written, so training would end without a model.
    """
    with _refusing(f"the settings of {model.name_or_path}", "config.json or generation_config.json"):
        notes = drop_idle_settings(model.generation_config) if model.can_generate() else ()
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder, state_dict={})
    return notes


def try_saving_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a tokenizer to a folder that is removed again.

    Raises:
        UserError: it cannot be written.
    """
    with (
        _refusing(f"the tokenizer of {tokenizer.name_or_path}", "tokenizer_config.json or tokenizer.json"),
        TemporaryDirectory() as folder,
    ):
        tokenizer.save_pretrained(folder)


@contextmanager
def _refusing(what: str, files: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, AttributeError, OSError, NotImplementedError) as error:
        raise UserError(
            f"{what} can be read and cannot be written: {first_line(error)}",
            "a stage would train to its end, and then have no model to leave",
            f"mend {files} in the model's folder",
        ) from error


def drop_idle_settings(settings: GenerationConfig) -> tuple[str, ...]:
    """Reset the generation settings that have no effect beside the others, which transformers reads and does not write.

    Sampling's temperature beside ``do_sample: false`` is one. What the model generates stays the same.
    """
    dropped: list[str] = []
    while idle := _idle_settings(settings, without=dropped):
        dropped += idle
        for name in idle:
            setattr(settings, name, getattr(GenerationConfig(), name))
    if not dropped:
        return ()
    return (f"generation_config.json: {', '.join(dropped)} have no effect beside its other settings, and are left out",)


def _idle_settings(settings: GenerationConfig, without: Sequence[str]) -> list[str]:
    """Names that transformers lists in its reason for not writing the settings; none where it would write them."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        idle = [name for name in re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE) if name not in without]
        if not idle:
            raise
        return idle
    return []
