"""Text metrics of answers against references, by their reference libraries, one value per answer.

ROUGE (Lin 2004) by ``rouge-score``, BLEU (Papineni et al. 2002) and chrF (Popović 2015) by ``sacrebleu``. Values of
single answers are needed to resample prompts and to compare a metric with people; the corpus values that papers print
are beside them.

Shapes: n answers, each with one or more references.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import regex
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU, CHRF

from rlhf.types import Float64

Language = Literal["en", "ja", "zh"]
"""``en`` stands for every language that puts spaces between words."""
References = Sequence[Sequence[str]]
ROUGE = ("rouge1", "rouge2", "rougeL")
BLEU_TOKENIZERS: Mapping[Language, str] = {"en": "13a", "ja": "char", "zh": "zh"}
"""sacrebleu's tokenizers. Japanese is split into characters: the result depends on no version of a dictionary."""
_TOKEN = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}ー]|[\p{L}\p{N}\p{M}]+?(?=[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}ー]|[^\p{L}\p{N}\p{M}]|\Z)"
)

_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+")


class WordTokenizer:
    """Tokens of ROUGE for scripts with spaces: runs of letters and digits, those in ASCII as the library's own.

    The library keeps only a-z and 0-9, so that two Russian or Korean texts would have no token in common, and ``Öl``
    and ``Äl`` would be equal.
    """

    def __init__(self) -> None:
        self._library = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """Split a text into lower-case tokens; English words are stemmed."""
        words = _WORD.findall(unicodedata.normalize("NFC", text.lower()))
        return [token for word in words for token in (self._library.tokenize(word) if word.isascii() else [word])]


class CharacterTokenizer:
    """Tokens of ROUGE for scripts without spaces: each character is one, a run of other letters or digits is one.

    The library's own tokenizer keeps only a-z and 0-9, so that two Japanese texts would have no token in common.
    """

    def tokenize(self, text: str) -> list[str]:
        """Split a text into lower-case tokens; punctuation is left out."""
        return _TOKEN.findall(text.lower())


def rouge(answers: Sequence[str], references: References, language: Language = "en") -> dict[str, Float64]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, (n,) each in [0, 1], of the best reference.

    English words are stemmed, as ``rouge-score`` and the papers that use it do: of texts in ASCII, the values are those
    of the library.
    """
    scorer = rouge_scorer(language)
    rows = [scorer.score_multi(list(given), answer) for answer, given in zip(answers, references, strict=True)]
    return {name: np.array([row[name].fmeasure for row in rows]) for name in ROUGE}


def rouge_scorer(language: Language) -> RougeScorer:
    """The library's scorer with the tokenizer of a language."""
    if language == "en":
        return RougeScorer(list(ROUGE), tokenizer=WordTokenizer())
    return RougeScorer(list(ROUGE), tokenizer=CharacterTokenizer())


def bleu(answers: Sequence[str], references: References, language: Language = "en") -> Float64:
    """Sentence BLEU, (n,) in [0, 100]; orders longer than the answer are left out (``effective_order``)."""
    metric = BLEU(tokenize=BLEU_TOKENIZERS[language], effective_order=True)
    return _by_answer(metric.sentence_score, answers, references)


def chrf(answers: Sequence[str], references: References, language: Language = "en") -> Float64:
    """Sentence chrF2, (n,) in [0, 100]; characters need no tokenizer, so that ``language`` changes nothing."""
    return _by_answer(CHRF().sentence_score, answers, references)


def corpus_bleu(answers: Sequence[str], references: References, language: Language = "en") -> float:
    """BLEU of all answers together, which is no mean of sentence values."""
    return float(BLEU(tokenize=BLEU_TOKENIZERS[language]).corpus_score(list(answers), _streams(references)).score)


def corpus_chrf(answers: Sequence[str], references: References) -> float:
    """chrF2 of all answers together."""
    return float(CHRF().corpus_score(list(answers), _streams(references)).score)


def _by_answer(score: Callable[..., object], answers: Sequence[str], references: References) -> Float64:
    rows = zip(answers, references, strict=True)
    return np.array([score(answer, list(given)).score for answer, given in rows])  # type: ignore[attr-defined]


def _streams(references: References) -> list[list[str | None]]:
    """sacrebleu's form of references: the first ones of all answers, the second ones, ...; None where there is none."""
    most = max(map(len, references), default=1)
    return [[given[i] if i < len(given) else None for given in references] for i in range(most)]
