"""Finds the words of a passage that hold an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.retrieval.passages import Passage
from rlhf.retrieval.words import sentences_of, words_of

LEAST_SUPPORT = 0.5
"""A sentence of a passage supports a sentence of an answer if it contains more than this fraction of its words."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Verbatim parts of a passage, in the order of the answer's sentences that they support."""

    passage: Passage
    quotes: tuple[str, ...]
    """At least one."""


def given_evidence(quote: str, oracles: Sequence[Passage]) -> Evidence | None:
    """The quote that a row gives, in the first oracle that contains it verbatim; None if none does."""
    passage = next((passage for passage in oracles if quote in passage.text), None)
    return None if passage is None else Evidence(passage=passage, quotes=(quote,))


def find_evidence(answer: str, oracles: Sequence[Passage]) -> Evidence | None:
    """For each sentence of the answer the sentence that supports it best, all of the oracle that supports most words.

    Of equal oracles the first is taken. Sentences of the answer without support have no quote.

    Returns:
        None if no sentence of the answer has support.
    """
    found = [Evidence(passage=passage, quotes=_supporting(answer, passage)) for passage in oracles]
    best = max(found, key=lambda evidence: support_of(" ".join(evidence.quotes), answer), default=None)
    return best if best is not None and best.quotes else None


def _supporting(answer: str, passage: Passage) -> tuple[str, ...]:
    """The passage's best sentence for each sentence of the answer, each once; the shortest of equally good ones."""
    candidates = sentences_of(passage.text)
    quotes: dict[str, None] = {}
    for part in sentences_of(answer):
        best = max(candidates, key=lambda sentence: (support_of(sentence, part), -len(sentence)))
        if support_of(best, part) > LEAST_SUPPORT:
            quotes[best] = None
    return tuple(quotes)


def support_of(text: str, answer: str) -> float:
    """Fraction of the answer's distinct words that a text contains; 0 for an answer without words."""
    wanted = set(words_of(answer))
    return len(wanted & set(words_of(text))) / len(wanted) if wanted else 0.0
