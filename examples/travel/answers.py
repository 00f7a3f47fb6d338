"""The office's writers, from careful to hasty: where demonstrations and the answers under comparison come from.

A writer reads the prompt, as the model will, and lets each good habit slip with its own probability. So every element
of an ideal answer is common in the demonstrations, and all of them together are rare: what imitation cannot reach and
preferences can.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from examples.travel.guideline import CLOSINGS, OPENINGS, TIPS, Task, read_prompt, split_sentences
from examples.travel.world import PRICES, QUARTERS

ANSWERS = {
    "price": ("The {name} costs {price} crowns.", "You pay {price} crowns at the {name}."),
    "hours": ("The {name} is open from {hours}.", "You find the {name} open from {hours}."),
    "quarter": ("The {name} is in the {quarter} quarter.", "You find the {name} in the {quarter} quarter."),
}
DETAILS = {
    "price": ("It costs {price} crowns.",),
    "hours": ("It is open from {hours}.",),
    "quarter": ("It is in the {quarter} quarter.",),
}
VAGUE_ANSWERS = {
    "price": ("It does not cost too much.", "The price is rather fair."),
    "hours": ("It is open most of the day.", "It opens in the morning."),
    "quarter": ("It is not far from here.", "It is in a nice part of {city}."),
}
PADDING = (
    "Many people come to {city} every year.",
    "There is always something to see.",
    "I hear that the weather is fine.",
    "Some like it and some do not.",
    "It is hard to say more.",
)
MAX_FLAWED_WORDS = 44
"""Longest answer of a degenerate kind, in words, so that it fits into a short context like all others."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How often a writer does each thing, as probabilities."""

    exact: float
    """Gives the fact asked for rather than a vague phrase."""
    mistake: float
    """Of the exact answers: states a wrong value."""
    detail: float
    """Adds a fact that was not asked for."""
    tip: float
    """Adds a tip."""
    misplaced: float
    """Of the tips: takes one that belongs to another kind of place."""
    opening: float
    closing: float
    padding: float
    """Adds a sentence that says nothing."""
    repeat: float
    """Says a sentence twice."""


CAREFUL = Habits(
    exact=0.95, mistake=0.02, detail=0.55, tip=0.55, misplaced=0.05, opening=0.6, closing=0.55, padding=0.1, repeat=0.05
)
ORDINARY = Habits(
    exact=0.85, mistake=0.04, detail=0.4, tip=0.4, misplaced=0.1, opening=0.45, closing=0.4, padding=0.2, repeat=0.1
)
HASTY = Habits(
    exact=0.7, mistake=0.08, detail=0.25, tip=0.25, misplaced=0.2, opening=0.3, closing=0.25, padding=0.3, repeat=0.15
)
FLAWLESS = Habits(
    exact=1.0, mistake=0.0, detail=1.0, tip=1.0, misplaced=0.0, opening=1.0, closing=1.0, padding=0.0, repeat=0.0
)
WRITERS = ((CAREFUL, 0.3), (ORDINARY, 0.45), (HASTY, 0.25))
"""Writers of the demonstrations and the share that each contributes."""


def write_answer(prompt: str, rng: random.Random) -> str:
    """An answer by one of the writers, with the leading space that separates it from the prompt."""
    habits = rng.choices([habits for habits, _ in WRITERS], [share for _, share in WRITERS])[0]
    return compose(read_prompt(prompt), habits, rng)


def write_ideal_answer(prompt: str, rng: random.Random) -> str:
    """An answer that meets every point of the guideline."""
    return compose(read_prompt(prompt), FLAWLESS, rng)


def compose(task: Task, habits: Habits, rng: random.Random) -> str:
    """One answer by a writer with these habits."""
    sentences = [_main_sentence(task, habits, rng)]
    if rng.random() < habits.detail:
        sentences.append(_detail_sentence(task, rng))
    if rng.random() < habits.tip:
        sentences.append(_tip_sentence(task, habits, rng))
    if rng.random() < habits.padding:
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(PADDING).format(city=task.city))
    if rng.random() < habits.repeat:
        sentences.append(rng.choice(sentences))
    if rng.random() < habits.opening:
        sentences.insert(0, rng.choice(OPENINGS))
    if rng.random() < habits.closing:
        sentences.append(rng.choice(CLOSINGS))
    return " " + " ".join(sentences)


def _main_sentence(task: Task, habits: Habits, rng: random.Random) -> str:
    if rng.random() >= habits.exact:
        return rng.choice(VAGUE_ANSWERS[task.topic]).format(city=task.city)
    value = task.facts[task.topic]
    if rng.random() < habits.mistake:
        value = _wrong_value(task, rng)
    return _fill(rng.choice(ANSWERS[task.topic]), task, {**task.facts, task.topic: value})


def _detail_sentence(task: Task, rng: random.Random) -> str:
    topic = rng.choice([topic for topic in task.facts if topic != task.topic])
    return _fill(rng.choice(DETAILS[topic]), task, task.facts)


def _tip_sentence(task: Task, habits: Habits, rng: random.Random) -> str:
    misplaced = rng.random() < habits.misplaced
    kind = rng.choice([kind for kind in TIPS if kind != task.kind]) if misplaced else task.kind
    return rng.choice(TIPS[kind])


def _fill(wording: str, task: Task, facts: dict[str, str]) -> str:
    return wording.format(name=task.name, **facts)


def _wrong_value(task: Task, rng: random.Random) -> str:
    closes = task.facts["hours"].split(" to ")[1]
    candidates = {
        "price": [str(price) for price in PRICES[task.kind]],
        "hours": [f"{hour} to {closes}" for hour in range(6, 11)],
        "quarter": list(QUARTERS),
    }[task.topic]
    return rng.choice([value for value in candidates if value != task.facts[task.topic]])


def write_flawed_answer(prompt: str, rng: random.Random) -> str:
    """An answer with a flaw that policies fall into under optimisation; the comparisons show it to the reward model."""
    words = rng.choice(FLAWS)(prompt, rng).split()
    return " " + " ".join(words[:MAX_FLAWED_WORDS])


def _looping(prompt: str, rng: random.Random) -> str:
    sentences = split_sentences(write_answer(prompt, rng))
    return " ".join(sentences + [rng.choice(sentences)] * rng.randint(2, 4))


def _unfinished(prompt: str, rng: random.Random) -> str:
    words = write_answer(prompt, rng).split()
    return " ".join(words[: rng.randint(2, len(words))]).rstrip(".!")


def _endless(prompt: str, rng: random.Random) -> str:
    return write_answer(prompt, rng) + write_answer(prompt, rng) + write_answer(prompt, rng)


def _next_to_nothing(prompt: str, rng: random.Random) -> str:
    return rng.choice((".", rng.choice(OPENINGS), rng.choice(CLOSINGS)))


def _stuffed(prompt: str, rng: random.Random) -> str:
    task = read_prompt(prompt)
    surplus = rng.choice((OPENINGS, CLOSINGS, TIPS[task.kind]))
    return write_answer(prompt, rng) + " " + " ".join(rng.sample(surplus, rng.randint(2, 3)))


FLAWS: tuple[Callable[[str, random.Random], str], ...] = (_looping, _unfinished, _endless, _next_to_nothing, _stuffed)
