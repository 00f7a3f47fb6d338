"""Ranks passages by their words: BM25 in Lucene's form (Robertson and Zaragoza 2009; k1 = 1.5, b = 0.75), by bm25s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf.errors import UserError
from rlhf.retrieval.passages import Passage
from rlhf.retrieval.words import words_of
from rlhf.types import Float32

if TYPE_CHECKING:
    from bm25s import BM25


class LexicalRanker:
    """BM25 scores of all passages, title and text, for a question."""

    def __init__(self, scores: BM25) -> None:
        self._bm25 = scores

    @classmethod
    def build(cls, passages: Sequence[Passage]) -> LexicalRanker:
        """Index passages. Words have ids by first occurrence, so that equal passages give equal files.

        Raises:
            UserError: no passage has a word.
        """
        from bm25s import BM25
        from bm25s.tokenization import Tokenized

        vocabulary: dict[str, int] = {}
        ids = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in words_of(f"{passage.title} {passage.text}")]
            for passage in passages
        ]
        if not vocabulary:
            what, fix = "no passage has a word", "give passages with letters or digits, or retrieval.method=dense"
            raise UserError(what, "BM25 ranks passages by their words", fix)
        bm25 = BM25()
        bm25.index(Tokenized(ids=ids, vocab=vocabulary), create_empty_token=False, show_progress=False)
        return cls(bm25)

    @classmethod
    def load(cls, folder: Path) -> LexicalRanker:
        """Read the files of ``save``; nothing is unpickled."""
        from bm25s import BM25

        return cls(BM25.load(folder, load_vocab=True, allow_pickle=False))

    def save(self, folder: Path) -> None:
        """Write arrays and vocabulary into a folder."""
        self._bm25.save(folder, allow_pickle=False, show_progress=False)

    def scores(self, question: str) -> Float32:
        """(N,) score of every passage; 0 if it shares no word with the question. A repeated word counts once."""
        words = self._bm25.get_tokens_ids(list(dict.fromkeys(words_of(question))))
        return np.asarray(self._bm25.get_scores_from_ids(words), dtype=np.float32)
