from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from examples.travel.answers import write_answer
from examples.travel.guideline import quality
from examples.travel.raters import RATERS, Comparison, Rater, ceiling, label, label_probability
from examples.travel.world import make_prompts, make_world

PROMPT = "Bresk: Amber Inn, hill quarter, 65 crowns, 10 to 21.\nTraveller: What does a night cost?\nAssistant:"
FACT = " The Amber Inn costs 65 crowns."
GREETED = " Gladly!" + FACT  # 0.15 better than the fact alone
PADDED = FACT + " I hear that the weather is fine."  # content 0.30, form 1/2


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    rng = random.Random(0)
    prompts = rng.sample(make_prompts(make_world(0)), 400)
    return [Comparison(prompt, write_answer(prompt, rng), write_answer(prompt, rng)) for prompt in prompts]


def test_probability_is_bradley_terrys_with_slips() -> None:
    rater = Rater(name="r", strictness=1.0, sharpness=10.0, slip=0.1)
    judged = 1 / (1 + math.exp(-1.5))  # 10 · (0.45 − 0.30)
    assert judged == pytest.approx(0.817574, abs=1e-6)
    assert rater.probability(Comparison(PROMPT, GREETED, FACT)) == pytest.approx(0.9 * judged + 0.1 * (1 - judged))


def test_a_strict_rater_minds_bad_form_more() -> None:
    strict, mild = (Rater(name="r", strictness=s, sharpness=10.0, slip=0.0) for s in (2.0, 0.0))
    assert strict.probability(Comparison(PROMPT, FACT, PADDED)) == pytest.approx(1 / (1 + math.exp(-10 * 0.30 * 0.75)))
    assert mild.probability(Comparison(PROMPT, FACT, PADDED)) == pytest.approx(0.5)


def test_the_order_of_the_answers_does_not_matter(comparisons: list[Comparison]) -> None:
    swapped = [Comparison(pair.prompt, pair.b, pair.a) for pair in comparisons]
    sums = [
        label_probability(pair) + label_probability(turned) for pair, turned in zip(comparisons, swapped, strict=True)
    ]
    assert sums == pytest.approx([1.0] * len(comparisons))
    assert ceiling(swapped) == pytest.approx(ceiling(comparisons))


@pytest.mark.parametrize("rater", RATERS, ids=lambda rater: rater.name)
def test_each_raters_errors_are_as_frequent_as_stated(rater: Rater, comparisons: list[Comparison]) -> None:
    rng = random.Random(7)
    errors, expected, variance = 0, 0.0, 0.0
    for pair in comparisons * 4:
        better_a = quality([pair.prompt], [pair.a]) >= quality([pair.prompt], [pair.b])
        p = rater.probability(pair)
        errors += rater.prefers_a(pair, rng) != better_a
        expected += 1 - p if better_a else p
        variance += p * (1 - p)
    assert abs(errors - expected) < 3 * math.sqrt(variance)


def test_labels_follow_the_mean_of_the_raters() -> None:
    pair, draws = Comparison(PROMPT, GREETED, FACT), 20_000
    p = fmean(rater.probability(pair) for rater in RATERS)
    rng = random.Random(3)
    frequency = fmean(label(pair, rng) for _ in range(draws))
    assert label_probability(pair) == pytest.approx(p)
    assert abs(frequency - p) < 3 * math.sqrt(p * (1 - p) / draws)


def test_ceiling_is_what_the_best_guesser_gets(comparisons: list[Comparison]) -> None:
    rng = random.Random(5)
    rounds = 20
    probabilities = [label_probability(pair) for pair in comparisons]
    hits = [
        label(pair, rng) == (p > 0.5) for _ in range(rounds) for pair, p in zip(comparisons, probabilities, strict=True)
    ]
    error = math.sqrt(sum(p * (1 - p) for p in probabilities) * rounds) / len(hits)
    assert abs(fmean(hits) - ceiling(comparisons)) < 3 * error


def test_ceiling_of_equal_answers_is_a_coin() -> None:
    assert ceiling([Comparison(PROMPT, FACT, FACT)]) == pytest.approx(0.5)
