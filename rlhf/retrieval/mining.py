"""Mines distractors: the passages that the ranking prefers for a question, and that do not answer it."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.retrieval.index import Index
from rlhf.retrieval.passages import Passage, Question
from rlhf.retrieval.words import words_of


class Miner:
    """Finds distractors on the oracle's side of the split."""

    def __init__(self, index: Index, sides: Sequence[str]) -> None:
        self.index, self._sides = index, sides
        self._words = [f" {' '.join(words_of(passage.text))} " for passage in index.passages]

    def distractors(self, question: Question, quotes: Sequence[str], side: str, count: int) -> list[Passage]:
        """The ``count`` best passages of the side, best first; fewer if the side has no more.

        Left out are the question's oracles, and passages that contain the words of a quote.
        """
        held = [f" {' '.join(words_of(quote))} " for quote in quotes]
        found: list[Passage] = []
        for i in self.index.order(question.text).tolist():
            if len(found) == count:
                break
            passage = self.index.passages[i]
            is_oracle = passage.id in question.oracles or any(words in self._words[i] for words in held)
            if self._sides[i] == side and not is_oracle:
                found.append(passage)
        return found
