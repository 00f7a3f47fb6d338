"""Mines distractors: the passages that the ranking prefers for a question, and that do not answer it."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.retrieval.index import Index
from rlhf.retrieval.passages import Passage, Question
from rlhf.retrieval.words import contains, plain, words_of


class Miner:
    """Finds distractors on the oracle's side of the split."""

    def __init__(self, index: Index, sides: Sequence[str]) -> None:
        self.index, self._sides = index, sides
        self._words = [f" {' '.join(words_of(passage.text))} " for passage in index.passages]
        self._plain = [f"{plain(passage.title)}\n{plain(passage.text)}" for passage in index.passages]

    def distractors(self, question: Question, quotes: Sequence[str], side: str, count: int) -> list[Passage]:
        """The ``count`` best passages of the side, best first; fewer if the side has no more.

        Left out are the question's oracles, and passages that contain the words of a quote, or the quote in title or
        text: in scripts without spaces, what follows a quote changes its last word.
        """
        held = [f" {' '.join(words_of(quote))} " for quote in quotes]
        said = [plain(quote) for quote in quotes]
        found: list[Passage] = []
        for i in self.index.order(question.text).tolist():
            if len(found) == count:
                break
            passage = self.index.passages[i]
            is_oracle = passage.id in question.oracles or any(words in self._words[i] for words in held)
            is_oracle = is_oracle or any(contains(self._plain[i], quote) for quote in said)
            if self._sides[i] == side and not is_oracle:
                found.append(passage)
        return found
