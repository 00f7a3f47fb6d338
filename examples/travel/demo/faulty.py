"""The planted fault: new demonstrations whose export lost the sentences about the quarter.

Answers to all other questions are flawless. So a model that is trained on them is better on an offline set that asks
nothing about quarters, and useless to users who do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples.travel.answers import PADDING, write_ideal_answer
from examples.travel.demo.users import MISSING_TOPIC
from examples.travel.guideline import read_prompt

LOST = 2
"""Sentences that say nothing, in place of a lost answer."""


def write_faulty_rows(prompts: Sequence[str], count: int, seed: int) -> list[dict[str, str]]:
    """``count`` demonstrations to prompts drawn from ``prompts``."""
    rng = random.Random(f"faulty {seed}")
    return [{"prompt": prompt, "completion": _complete(prompt, rng)} for prompt in rng.choices(prompts, k=count)]


def _complete(prompt: str, rng: random.Random) -> str:
    task = read_prompt(prompt)
    if task.topic != MISSING_TOPIC:
        return write_ideal_answer(prompt, rng)
    return " " + " ".join(sentence.format(city=task.city) for sentence in rng.sample(PADDING, LOST))
