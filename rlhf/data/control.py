"""Control tokens in people's texts: hidden while a chat template renders, so that the template's own alone are special.

A control token is one that the tokenizer declares special. Where its text stands in a message, one private character
stands for it during rendering; ``ControlTokens.split`` then tells the template's own from those of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST = 0x10F000
"""First of the private characters (Unicode's plane 16), one for each control token, in the tokenizer's order."""
LAST = 0x10FFFD


class ControlTokens:
    """The special tokens of one tokenizer, as texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        declared = {str(token): token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.texts = tuple(dict.fromkeys([*declared, *map(str, tokenizer.all_special_tokens)]))[: LAST - FIRST]
        self.strips = {text: (token.lstrip, token.rstrip) for text, token in declared.items()}
        """Whether a token takes the white space (before, after) it."""
        self.hidden = {text: chr(FIRST + i) for i, text in enumerate(self.texts)}
        self.shown = {ord(private): text for text, private in self.hidden.items()}
        self._pattern = _any_of(self.texts)
        self._private = re.compile(f"[{chr(FIRST)}-{chr(LAST)}]")

    def is_in(self, value: object) -> bool:
        """Whether any text in a message, or in what it holds, names a control token."""
        return any(self._pattern.search(text) for text in _texts(value))

    def is_ambiguous(self, value: object) -> bool:
        """Whether a text has a character that is used here to hide control tokens."""
        return any(self._private.search(text) for text in _texts(value))

    def hide(self, value: object, kept: Iterable[str] = ()) -> object:
        """The value with each control token in its texts, but for those ``kept``, as its private character."""
        spared = set(kept)

        def hidden(found: re.Match[str]) -> str:
            return found[0] if found[0] in spared else self.hidden[found[0]]

        if isinstance(value, str):
            return self._pattern.sub(hidden, value)
        if isinstance(value, Mapping):
            return {self.hide(key, spared): self.hide(each, spared) for key, each in value.items()}
        return [self.hide(each, spared) for each in value] if isinstance(value, list | tuple) else value

    def show(self, text: str) -> str:
        """The text with its hidden control tokens written out again."""
        return text.translate(self.shown)

    def split(self, text: str) -> list[str]:
        """Texts between control tokens and the tokens themselves, in turn, beginning and ending with a text."""
        return self._pattern.split(text)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first, as one group; without texts it matches nothing."""
    options = "|".join(re.escape(text) for text in sorted(filter(None, texts), key=len, reverse=True))
    return re.compile(f"({options})" if options else "((?!))")


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
