"""Agreement among several answers of one model to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from rlhf.evaluation.text_metrics import Language, rouge_scorer


def consistency(answers: Sequence[str], language: Language = "en") -> float:
    """Mean ROUGE-L F-measure of all pairs of answers, in [0, 1]; NaN for fewer than two.

    A model that says the same in every sample has 1. It measures wording: a judge is needed for meaning.
    """
    scorer = rouge_scorer(language)
    pairs = [scorer.score(one, other)["rougeL"].fmeasure for one, other in combinations(answers, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")
