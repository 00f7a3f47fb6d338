"""Hides control tokens in user texts while a chat template renders, so that only the template's own are special.

A control token is one that the tokenizer declares special. During rendering, its text in a message is replaced by one
private character, so that ``ControlTokens.split`` can distinguish the template's tokens from those of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST = 0x10F000
"""First of the private characters (Unicode plane 16), one per control token, in the tokenizer's order."""
LAST = 0x10FFFD


class ControlTokens:
    """The special and end tokens of one tokenizer, as texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int] = ()) -> None:
        """Collect the tokens as texts.

        Args:
            ends: end tokens, which the tokenizer may not declare special.
        """
        declared = {str(token): token for token in tokenizer.added_tokens_decoder.values() if token.special}
        others = [*tokenizer.all_special_tokens, *map(tokenizer.convert_ids_to_tokens, ends)]
        self.texts = tuple(dict.fromkeys([*declared, *(str(token) for token in others if token)]))[: LAST - FIRST]
        self.strips = {text: (token.lstrip, token.rstrip) for text, token in declared.items()}
        """Whether a token strips the white space (before, after) it."""
        self.hidden = {text: chr(FIRST + i) for i, text in enumerate(self.texts)}
        self.shown = {ord(private): text for text, private in self.hidden.items()}
        self._pattern = _any_of(self.texts)
        self._unwritable = _any_of(_unwritable(self.texts, tokenizer))
        self._private = re.compile(f"[{chr(FIRST)}-{chr(LAST)}]")

    def is_in(self, value: object) -> bool:
        """Whether any text in a nested value contains a control token."""
        return any(self._pattern.search(text) for text in _texts(value))

    def unwritable_in(self, value: object) -> str | None:
        """The first control token in a text that the tokenizer cannot encode as plain text, or None."""
        found = (self._unwritable.search(text) for text in _texts(value))
        return next((match[0] for match in found if match), None)

    def is_ambiguous(self, value: object) -> bool:
        """Whether a text contains one of the private characters."""
        return any(self._private.search(text) for text in _texts(value))

    def hide(self, value: object, kept: Iterable[str] = ()) -> object:
        """Replace each control token in the value's texts, except those ``kept``, by its private character."""
        spared = set(kept)

        def hidden(found: re.Match[str]) -> str:
            return found[0] if found[0] in spared else self.hidden[found[0]]

        if isinstance(value, str):
            return self._pattern.sub(hidden, value)
        if isinstance(value, Mapping):
            return {self.hide(key, spared): self.hide(each, spared) for key, each in value.items()}
        return [self.hide(each, spared) for each in value] if isinstance(value, list | tuple) else value

    def show(self, text: str) -> str:
        """Replace private characters by the control tokens that they hide."""
        return text.translate(self.shown)

    def split(self, text: str) -> list[str]:
        """Split a text into texts and control tokens, alternating; it begins and ends with a text."""
        return self._pattern.split(text)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern with one group that matches any of the texts, longest first; without texts it matches nothing."""
    options = "|".join(re.escape(text) for text in sorted(filter(None, texts), key=len, reverse=True))
    return re.compile(f"({options})" if options else "((?!))")


def _unwritable(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that stay special even with ``split_special_tokens``, mostly those not declared special."""
    if not texts:
        return []
    as_text = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    own = tokenizer.convert_tokens_to_ids(list(texts))
    return [text for text, ids, token in zip(texts, as_text, own, strict=True) if token in ids]


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key)
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
