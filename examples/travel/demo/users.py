"""Simulated users: what they ask, and whether they are content with an answer.

Unlike the raters, a user sees one answer and gives a thumb. Users ask where a place is far more often than the offline
set does: that set was written from questions about prices and hours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from examples.travel.guideline import assess, read_prompt

MISSING_TOPIC = "quarter"
"""Topic of the questions that the offline set lacks."""
LIVE_SHARE = 0.6
"""Part of the users' questions that are about it."""
SHARPNESS = 12.0
"""Log-odds of a thumb up per point of quality."""
THUMBS = 0.8
"""Probability that a user gives a thumb at all."""


@dataclass(frozen=True, kw_only=True)
class UserQuestion:
    """One user, who asks one question."""

    user: str
    """The conversation: the gateway gives it one version."""
    prompt: str


def probability_content(prompt: str, answer: str, demand: float) -> float:
    """Probability that a person who sees this answer alone is content with it.

    Args:
        demand: quality with which half of the people are.

    Raises:
        UserError: the prompt is not one of this example's.
    """
    return 1 / (1 + math.exp(-SHARPNESS * (assess(prompt, answer).quality - demand)))


def is_content(prompt: str, answer: str, demand: float, seed: object) -> bool:
    """One person's verdict; the same seed gives the same one. Raises as ``probability_content``."""
    return random.Random(f"content {seed}").random() < probability_content(prompt, answer, demand)


def gives_thumb(user: str) -> bool:
    """Whether a user gives a thumb at all."""
    return random.Random(f"thumb {user}").random() < THUMBS


def split_by_topic(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts of the topic that the offline set lacks, and all others. Raises as ``read_prompt``."""
    is_missing = [read_prompt(prompt).topic == MISSING_TOPIC for prompt in prompts]
    missing = [prompt for prompt, found in zip(prompts, is_missing, strict=True) if found]
    return missing, [prompt for prompt, found in zip(prompts, is_missing, strict=True) if not found]


def draw_questions(prompts: Sequence[str], count: int, label: str, seed: int) -> list[UserQuestion]:
    """``count`` users, each with a question; ``LIVE_SHARE`` of them ask what the offline set lacks.

    Args:
        label: of this group of users, so that two groups share no user.
    """
    rng = random.Random(f"questions {label} {seed}")
    missing, others = split_by_topic(prompts)
    return [
        UserQuestion(user=f"{label}-{number}", prompt=rng.choice(missing if rng.random() < LIVE_SHARE else others))
        for number in range(count)
    ]
