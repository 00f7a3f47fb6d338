"""Encodes rendered text piece by piece.

A text is cut where generation begins, because at generation the model is given the tokens of its prompt and no others.
A piece that continues another is encoded without the tokens that the tokenizer puts before every text (the begin
token, and in Llama 2 and similar models a space).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.data.control import ControlTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
ANCHORS = ("\n", ".", ":", "a")
"""Texts to put before a piece to encode it as a continuation; one whose tokens merge with the piece is skipped."""
_BEFORE = ("\n", "1", ".")
"""Anchors for texts that do not merge with them: the first with a token is used, as some tokenizers drop newlines."""


@dataclass(frozen=True)
class Text:
    """A piece of rendered text. ``hides``: control tokens from user texts are replaced by private characters."""

    text: str
    hides: bool = False


class Encoder:
    """Encodes pieces of text with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: ControlTokens) -> None:
        self.tokenizer, self.control = tokenizer, control
        self.head = self._head()
        """Special tokens that the tokenizer puts before a text: the begin token or nothing."""
        self._anchor = next((text for text in _BEFORE if self._plain([text])[0]), _BEFORE[0])
        alone, [line, after] = self._plain(["hello"])[0], self._plain([self._anchor, f"{self._anchor}hello"])
        self.sets_space = after != line + alone
        """Whether the tokenizer prefixes every text, for example with a space."""

    def begin(self, texts: Sequence[Text], with_head: Sequence[bool]) -> list[Ids]:
        """Tokens of each text at the beginning of a sequence, after ``head`` if requested; never empty.

        The first response token is predicted from the token before it, so an empty text becomes the end token, which
        language models without a begin token use to separate documents.
        """
        encoded = self._encode(texts)
        headed = [
            self.head + ids if headed and ids[: len(self.head)] != self.head else ids
            for ids, headed in zip(encoded, with_head, strict=True)
        ]
        return [ids or [int(self.tokenizer.eos_token_id)] for ids in headed]

    def proceed(self, before: Sequence[Text], texts: Sequence[Text]) -> list[Ids]:
        """Tokens of each text as a continuation of the one ``before`` it."""
        if not self.sets_space:
            return self._encode(texts)
        joined = self._encode([Text(a.text + b.text, a.hides or b.hides) for a, b in zip(before, texts, strict=True)])
        return [
            whole[len(start) :] if whole[: len(start)] == start else self._after_anchor(text)
            for start, whole, text in zip(self._encode(before), joined, texts, strict=True)
        ]

    def _after_anchor(self, text: Text) -> Ids:
        """Tokens of a text whose first characters merge with the last token of the text before it."""
        for anchor in ANCHORS:
            start, whole = self._encode([Text(anchor), Text(anchor + text.text, text.hides)])
            if start and whole[: len(start)] == start:
                return whole[len(start) :]
        return self._encode([text])[0]

    def _encode(self, texts: Sequence[Text]) -> list[Ids]:
        encoded = self._plain(["" if text.hides else text.text for text in texts])
        return [self._encode_hidden(text.text) if text.hides else ids for text, ids in zip(texts, encoded, strict=True)]

    def _plain(self, texts: list[str], **options: bool) -> list[Ids]:
        """Tokens of each text without special tokens; one call, which the tokenizer parallelises."""
        if not texts:
            return []
        encode = self.tokenizer
        found = encode(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)
        ids: list[Ids] = found["input_ids"]
        return ids

    def _encode_hidden(self, text: str) -> Ids:
        """Tokens of a text with hidden control tokens: these are encoded as text, the others stay special."""
        parts = self.control.split(text)
        ids: Ids = []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(int(self.tokenizer.convert_tokens_to_ids(part)))
                continue
            if i and self.control.strips.get(parts[i - 1], (False, False))[1]:
                part = part.lstrip()
            if i + 1 < len(parts) and self.control.strips.get(parts[i + 1], (False, False))[0]:
                part = part.rstrip()
            ids += self._encode_as_text(self.control.show(part), special=parts[i - 1] if i else "")
        return ids

    def _encode_as_text(self, text: str, special: str) -> Ids:
        """Tokens of a text in which no token is special, as a continuation of a ``special`` token."""
        if not text:
            return []
        [alone] = self._plain([text], split_special_tokens=True)
        if not special or not self.sets_space:
            return alone
        after, probe = self._plain([f"{special}hello", "hello"])
        if after[1:] == probe:  # the tokenizer applies its prefix again after a special token
            return alone
        start, whole = self._plain([self._anchor, f"{self._anchor}{text}"], split_special_tokens=True)
        return whole[len(start) :] if whole[: len(start)] == start else alone

    def _head(self) -> Ids:
        bare, full = self._plain(["a"])[0], self.tokenizer("a")["input_ids"]
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return list(full[:start])
