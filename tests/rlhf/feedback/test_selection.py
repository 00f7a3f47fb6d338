from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf.feedback.selection import Candidate, candidate_pairs, disagreement, select


def pair(prompt: int, first: int, second: int) -> Candidate:
    return Candidate(prompt=prompt, first=first, second=second)


def test_every_two_different_answers_of_a_prompt_are_a_candidate() -> None:
    found = candidate_pairs([0, 0, 1, 0, 1], ["a", "b", "a", " a\n", "c"])
    assert found.pairs == (pair(0, 0, 1), pair(0, 1, 3), pair(1, 2, 4))
    assert found.identical == 1


def test_models_that_disagree_are_uncertain_and_models_that_agree_on_a_coin_are_not() -> None:
    log3 = math.log(3)  # σ(±log 3) = 3/4 and 1/4
    scores = [[log3, 0.0, 5.0, 5.0], [0.0, log3, 5.0, 5.0]]
    assert disagreement([pair(0, 0, 1), pair(1, 2, 3)], scores) == pytest.approx([1 / 16, 0.0])


def test_a_constant_that_a_model_adds_to_all_scores_changes_nothing() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 4))
    pairs = [pair(0, 0, 1), pair(0, 2, 3)]
    shifted = scores + np.array([[1.0], [-7.0], [100.0]])
    assert disagreement(pairs, shifted) == pytest.approx(disagreement(pairs, scores))


def test_every_prompts_best_pair_comes_before_a_second_one() -> None:
    pairs = [pair(0, 0, 1), pair(0, 0, 2), pair(1, 3, 4), pair(2, 5, 6)]
    priority = [0.9, 0.8, 0.1, 0.3]
    assert select(pairs, priority, 3) == [pairs[0], pairs[3], pairs[2]]
    assert select(pairs, priority, 9) == [pairs[0], pairs[3], pairs[2], pairs[1]]
    assert select([], [], 3) == []


def test_equal_priorities_keep_their_order() -> None:
    pairs = [pair(i, 2 * i, 2 * i + 1) for i in range(20)]
    assert select(pairs, np.zeros(20), 7) == pairs[:7]
