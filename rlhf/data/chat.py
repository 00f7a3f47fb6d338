"""Prompts as text, by the tokenizer's chat template or as an HH transcript; and the special tokens training needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf.data.records import Message, Messages, text_of
from rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}
"""Names of the roles in a transcript, as in HH."""

KNOWN_PADS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|fim_pad|>")
"""Padding tokens that tokenizers carry without always declaring them."""

NEW_PAD = "<|pad|>"


def render_prompt(prompt: Messages | str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that the response continues.

    A string is taken as it stands, with or without a chat template: who wants the template gives messages. Messages go
    through the chat template; without one they become a ``transcript``.

    Raises:
        jinja2.TemplateError: the template refuses these turns (two user turns in a row, for instance).
    """
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        return transcript(prompt)
    turns = [turn.as_dict() for turn in prompt]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def render_response(completion: Message | str, prompt: Messages | str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The completion as it follows ``render_prompt``: after a transcript's last ``Assistant:`` comes a space."""
    if isinstance(prompt, str) or tokenizer.chat_template:
        return text_of(completion)
    return f" {text_of(completion)}"


def transcript(prompt: Messages | str) -> str:
    r"""Plain text of a prompt, the same for every tokenizer: ``\n\nHuman: ...\n\nAssistant:`` for messages.

    It names a prompt where the text for a model would not do: a split by it holds for all models.
    """
    if isinstance(prompt, str):
        return prompt
    turns = [f"\n\n{NAMES.get(turn.role, turn.role.capitalize())}: {turn.content}" for turn in prompt]
    return "".join(turns) + f"\n\n{NAMES['assistant']}:"


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure, in place, that responses can end and that padding is not mistaken for the end.

    Training packs and never pads, but a saved model may be padded by others; when the padding token is the end token,
    they mask the end out of the loss and the model never learns to stop. So a padding token of its own is chosen: a
    known one of the vocabulary, the unknown token, or a new one, whose id may lie beyond the embedding because it is
    never fed to the model here.

    Raises:
        UserError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end token",
            "a response ends where the model emits it; without one every response runs to the length limit",
            "set eos_token in the model folder's tokenizer_config.json",
        )
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return
    vocabulary = tokenizer.get_vocab()
    candidates = [*KNOWN_PADS, tokenizer.unk_token]
    usable = (token for token in candidates if token in vocabulary and token != tokenizer.eos_token)
    tokenizer.add_special_tokens({"pad_token": next(usable, NEW_PAD)})
