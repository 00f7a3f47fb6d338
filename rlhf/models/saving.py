"""Checks before training that a stage can save its model, by writing everything but the weights."""

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
    """Write all of a model but its weights to a temporary folder; returns notes on corrected settings.

    Raises:
        UserError: it cannot be written, so training would end without a model.
    """
    with _refuse_unsavable(f"the settings of {model.name_or_path}", "config.json or generation_config.json"):
        notes = drop_idle_settings(model.generation_config) if model.can_generate() else ()
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder, state_dict={})
    return notes


def try_saving_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a tokenizer to a temporary folder.

    Raises:
        UserError: it cannot be written.
    """
    with (
        _refuse_unsavable(f"the tokenizer of {tokenizer.name_or_path}", "tokenizer_config.json or tokenizer.json"),
        TemporaryDirectory() as folder,
    ):
        tokenizer.save_pretrained(folder)


@contextmanager
def _refuse_unsavable(what: str, files: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, AttributeError, OSError, NotImplementedError) as error:
        raise UserError(
            f"{what} can be read and cannot be written: {first_line(error)}",
            "the stage would train to its end and then fail to save its model",
            f"correct {files} in the model's folder",
        ) from error


def drop_idle_settings(settings: GenerationConfig) -> tuple[str, ...]:
    """Reset generation settings that have no effect beside the others: transformers reads them, but does not save them.

    An example is ``temperature`` with ``do_sample: false``. Generation does not change.
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
    """Names of the settings for which transformers refuses to save; empty if it would save."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        idle = [name for name in re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE) if name not in without]
        if not idle:
            raise
        return idle
    return []
