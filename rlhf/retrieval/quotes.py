"""Finds the words of a passage that hold an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.retrieval.passages import Passage
from rlhf.retrieval.words import sentences_of, words_of

LEAST_SUPPORT = 0.5
"""Smallest fraction of an answer's words that a sentence must contain to support it."""


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A verbatim part of a passage, and the fraction of the answer's words in it."""

    passage: Passage
    text: str
    support: float


def given_quote(text: str, answer: str, oracles: Sequence[Passage]) -> Quote | None:
    """The quote that a row gives, in the first oracle that contains it verbatim; None if none does."""
    passage = next((passage for passage in oracles if text in passage.text), None)
    return None if passage is None else Quote(passage=passage, text=text, support=support_of(text, answer))


def find_quote(answer: str, oracles: Sequence[Passage]) -> Quote | None:
    """The sentence that supports the answer best, of all oracles; the first of several, the shortest first.

    Returns:
        None if no sentence contains ``LEAST_SUPPORT`` of the answer's words.
    """
    found = [
        Quote(passage=passage, text=sentence, support=support_of(sentence, answer))
        for passage in oracles
        for sentence in sentences_of(passage.text)
    ]
    best = max(found, key=lambda quote: (quote.support, -len(quote.text)), default=None)
    return best if best is not None and best.support >= LEAST_SUPPORT else None


def support_of(sentence: str, answer: str) -> float:
    """Fraction of the answer's distinct words that the sentence contains; 0 for an answer without words."""
    wanted = set(words_of(answer))
    return len(wanted & set(words_of(sentence))) / len(wanted) if wanted else 0.0
