"""Control tokens in people's texts: hidden while a chat template renders, so that the template's own alone are special.

A control token is one that the tokenizer declares special. Where its text stands in a message, one private character
stands for it during rendering; ``ControlTokens.split`` then tells the template's own from those of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST = 0x10F000
"""First of the private characters (Unicode's plane 16), one for each control token, in the tokenizer's order."""
LAST = 0x10FFFD


class ControlTokens:
    """The special and the end tokens of one tokenizer, as texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int] = ()) -> None:
        """Args: ends are end tokens, which the tokenizer may not have declared special."""
        declared = {str(token): token for token in tokenizer.added_tokens_decoder.values() if token.special}
        others = [*tokenizer.all_special_tokens, *map(tokenizer.convert_ids_to_tokens, ends)]
        self.texts = tuple(dict.fromkeys([*declared, *(str(token) for token in others if token)]))[: LAST - FIRST]
        self.strips = {text: (token.lstrip, token.rstrip) for text, token in declared.items()}
        """Whether a token takes the white space (before, after) it."""
        self.hidden = {text: chr(FIRST + i) for i, text in enumerate(self.texts)}
        self.shown = {ord(private): text for text, private in self.hidden.items()}
        self._pattern = _any_of(self.texts)
        self._unwritable = _any_of(_unwritable(self.texts, tokenizer))
        self._private = re.compile(f"[{chr(FIRST)}-{chr(LAST)}]")

    def is_in(self, value: object) -> bool:
        """Whether any text in a message, or in what it holds, names a control token."""
        return any(self._pattern.search(text) for text in _texts(value))

    def unwritable_in(self, value: object) -> str | None:
        """A control token named in a text that the tokenizer cannot write as text, if there is one."""
        found = (self._unwritable.search(text) for text in _texts(value))
        return next((match[0] for match in found if match), None)

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


def _unwritable(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that stay themselves where no token is to be special: those that are not declared so, mostly."""
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
