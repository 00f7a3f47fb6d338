"""Rendered text to tokens, piece by piece, as the tokenizer cuts the whole.

A text is cut where generation begins, because a model that answers is given the tokens of its prompt and no others.
A piece that continues another is encoded without what the tokenizer sets before every text (the begin token, and in
Llama 2 and its relatives a space).
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
"""Texts before a piece that show how it continues; a merge across the seam rules one out."""
_BEFORE = ("\n", "1", ".")
"""Anchors for texts that do not merge with one: the first that is a token, since some tokenizers drop a line's end."""


@dataclass(frozen=True)
class Text:
    """A piece of rendered text. ``hides``: control tokens of people's texts stand in it as private characters."""

    text: str
    hides: bool = False


class Encoder:
    """Pieces of text as tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: ControlTokens) -> None:
        self.tokenizer, self.control = tokenizer, control
        self.head = self._head()
        """Special tokens that the tokenizer sets before a text: the begin token or nothing."""
        self._anchor = next((text for text in _BEFORE if self._plain([text])[0]), _BEFORE[0])
        alone, [line, after] = self._plain(["hello"])[0], self._plain([self._anchor, f"{self._anchor}hello"])
        self.sets_space = after != line + alone
        """Whether the tokenizer begins every text with a space or the like."""

    def begin(self, texts: Sequence[Text], with_head: Sequence[bool]) -> list[Ids]:
        """Tokens of each text as the beginning of a sequence, after ``head`` where asked; never empty.

        The first response token is predicted from the token before it, so an empty text becomes the end token, with
        which language models that have no begin token separate documents.
        """
        encoded = self._encode(texts)
        headed = [
            self.head + ids if headed and ids[: len(self.head)] != self.head else ids
            for ids, headed in zip(encoded, with_head, strict=True)
        ]
        return [ids or [int(self.tokenizer.eos_token_id)] for ids in headed]

    def proceed(self, before: Sequence[Text], texts: Sequence[Text]) -> list[Ids]:
        """Tokens of each text as it follows the one ``before`` it."""
        if not self.sets_space:
            return self._encode(texts)
        joined = self._encode([Text(a.text + b.text, a.hides or b.hides) for a, b in zip(before, texts, strict=True)])
        return [
            whole[len(start) :] if whole[: len(start)] == start else self._after_anchor(text)
            for start, whole, text in zip(self._encode(before), joined, texts, strict=True)
        ]

    def _after_anchor(self, text: Text) -> Ids:
        """Tokens of a text that continues another whose last token reaches into it."""
        for anchor in ANCHORS:
            start, whole = self._encode([Text(anchor), Text(anchor + text.text, text.hides)])
            if start and whole[: len(start)] == start:
                return whole[len(start) :]
        return self._encode([text])[0]

    def _encode(self, texts: Sequence[Text]) -> list[Ids]:
        encoded = self._plain(["" if text.hides else text.text for text in texts])
        return [self._revealed(text.text) if text.hides else ids for text, ids in zip(texts, encoded, strict=True)]

    def _plain(self, texts: list[str], **options: bool) -> list[Ids]:
        """Tokens of each text without special tokens; one call, which the tokenizer spreads over threads."""
        if not texts:
            return []
        encode = self.tokenizer
        found = encode(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)
        ids: list[Ids] = found["input_ids"]
        return ids

    def _revealed(self, text: str) -> Ids:
        """Tokens of a text that hides control tokens: those become text, the others stay special."""
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
            ids += self._as_text(self.control.show(part), special=parts[i - 1] if i else "")
        return ids

    def _as_text(self, text: str, special: str) -> Ids:
        """Tokens of a text in which no token is special, as they follow a ``special`` one."""
        if not text:
            return []
        [alone] = self._plain([text], split_special_tokens=True)
        if not special or not self.sets_space:
            return alone
        after, probe = self._plain([f"{special}hello", "hello"])
        if after[1:] == probe:  # the tokenizer begins anew after a special token
            return alone
        start, whole = self._plain([self._anchor, f"{self._anchor}{text}"], split_special_tokens=True)
        return whole[len(start) :] if whole[: len(start)] == start else alone

    def _head(self) -> Ids:
        bare, full = self._plain(["a"])[0], self.tokenizer("a")["input_ids"]
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return list(full[:start])
