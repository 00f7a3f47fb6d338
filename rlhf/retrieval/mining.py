"""Mines distractors: the passages that the ranking prefers for a question, and that do not answer it."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.retrieval.index import Index
from rlhf.retrieval.passages import Question
from rlhf.retrieval.words import words_of


class Miner:
    """Finds distractors on the oracle's side of the split."""

    def __init__(self, index: Index, sides: Sequence[str]) -> None:
        self.index, self._sides = index, sides
        self._words = [f" {' '.join(words_of(passage.text))} " for passage in index.passages]

    def distractors(self, question: Question, quote: str, side: str, count: int) -> list[int]:
        """Indices of the ``count`` best passages of the side, best first; fewer if the side has no more.

        Left out are the question's oracles, and passages that contain the words of the quote.
        """
        held = f" {' '.join(words_of(quote))} "
        found: list[int] = []
        for i in self.index.order(question.text).tolist():
            if len(found) == count:
                break
            is_oracle = self.index.passages[i].id in question.oracles
            if self._sides[i] == side and not is_oracle and held not in self._words[i]:
                found.append(i)
        return found
