"""Which pairs of sampled answers raters compare: any, or those about which reward models disagree.

Shapes: A answers, M models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Two different answers to one prompt, as indices of the sampled answers."""

    prompt: int
    first: int
    second: int


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """All pairs of different answers, in the order of the answers, and the number of pairs of equal ones."""

    pairs: tuple[Candidate, ...]
    identical: int


def candidate_pairs(prompts: Sequence[int], texts: Sequence[str]) -> Candidates:
    """Pairs of answers to the same prompt; two answers that differ in white space around them alone are equal.

    Args:
        prompts: (A,) prompt of each answer.
        texts: (A,) the answers.
    """
    by_prompt: dict[int, list[int]] = {}
    for answer, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(answer)
    pairs = [
        Candidate(prompt=prompt, first=first, second=second)
        for prompt, answers in by_prompt.items()
        for first, second in combinations(answers, 2)
    ]
    different = tuple(pair for pair in pairs if texts[pair.first].strip() != texts[pair.second].strip())
    return Candidates(pairs=different, identical=len(pairs) - len(different))


def disagreement(pairs: Sequence[Candidate], scores: ArrayLike) -> np.ndarray:
    """(pairs,) variance over the models of the predicted probability that the first answer wins.

    Large where the models disagree, and small where all call it a coin's throw: a label teaches them nothing there
    (Christiano et al. 2017, section 2.2.4). A model's probability is σ(s_first − s_second).

    Args:
        scores: (M, A) each model's scores, on its own scale of logits.
    """
    table = np.asarray(scores, dtype=np.float64)
    first, second = [pair.first for pair in pairs], [pair.second for pair in pairs]
    return np.var(expit(table[:, first] - table[:, second]), axis=0)


def select(pairs: Sequence[Candidate], priority: ArrayLike, count: int) -> list[Candidate]:
    """The ``count`` pairs with the highest priority, from as many prompts as possible; fewer if there are fewer.

    Every prompt's best pair comes before any prompt's second one. Equal priorities keep the order of the pairs.

    Args:
        priority: (pairs,) such as ``disagreement``, or random numbers.
    """
    values = np.asarray(priority, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    seen: dict[int, int] = {}
    rank = np.empty(len(pairs), dtype=np.int64)
    for i in order:
        rank[i] = seen[pairs[i].prompt] = seen.get(pairs[i].prompt, -1) + 1
    return [pairs[i] for i in order[np.argsort(rank[order], kind="stable")][:count]]
