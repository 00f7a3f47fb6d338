from __future__ import annotations

import random
from statistics import fmean, stdev

import pytest

from examples.travel.answers import MAX_FLAWED_WORDS, write_answer, write_flawed_answer, write_ideal_answer
from examples.travel.guideline import MAX_WORDS, assess, quality
from examples.travel.world import make_prompts, make_world


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return make_prompts(make_world(0))


def test_answers_follow_their_random_numbers(prompts: list[str]) -> None:
    write = [[write_answer(prompt, random.Random(seed)) for prompt in prompts[:20]] for seed in (1, 1, 2)]
    assert write[0] == write[1] != write[2]


def test_ideal_answers_score_one_within_the_word_limit(prompts: list[str]) -> None:
    rng = random.Random(0)
    answers = [write_ideal_answer(prompt, rng) for prompt in prompts]
    assert quality(prompts, answers) == pytest.approx([1.0] * len(prompts))
    assert max(len(answer.split()) for answer in answers) <= MAX_WORDS


def test_written_answers_leave_room_above_and_below(prompts: list[str]) -> None:
    rng = random.Random(0)
    scores = quality(prompts, [write_answer(prompt, rng) for prompt in prompts])
    assert 0.42 < fmean(scores) < 0.52
    assert 0.15 < stdev(scores) < 0.28
    assert sum(score > 0.95 for score in scores) > 0.005 * len(scores)


def test_each_part_of_an_ideal_answer_is_common_and_none_is_the_rule(prompts: list[str]) -> None:
    rng = random.Random(0)
    assessments = [assess(prompt, write_answer(prompt, rng)) for prompt in prompts]
    for criterion in ("detail", "tip", "opening", "closing"):
        assert 0.25 < fmean(getattr(assessment, criterion) == 1 for assessment in assessments) < 0.6


def test_flawed_answers_are_short_enough_and_mostly_worse(prompts: list[str]) -> None:
    rng = random.Random(0)
    flawed = [write_flawed_answer(prompt, rng) for prompt in prompts]
    assert all(answer.startswith(" ") and 1 <= len(answer.split()) <= MAX_FLAWED_WORDS for answer in flawed)
    assert fmean(quality(prompts, flawed)) < 0.25
