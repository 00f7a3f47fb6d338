"""Simulated people compare the arms' answers in a feedback project: blinded, through the store, as on the page."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from examples.travel.rate import rate
from rlhf.feedback.items import make_item
from rlhf.feedback.records import Answer, Item
from rlhf.feedback.settings import ProjectSettings
from rlhf.feedback.store import Store

RATERS = 6
PAIRS = 5
"""Pairs of arms that are compared on each item."""
OVERLAP = 3
"""Raters of each pair."""
SETTINGS = ProjectSettings(overlap=OVERLAP, gold_fraction=0.0, repeat_fraction=0.0)


def choose_pairs(prompts: Sequence[str], answers: Mapping[str, Sequence[str]], seed: int) -> list[Item]:
    """Pairs of different answers to compare, in random order.

    Args:
        prompts: what raters read, the question below the office's card.
        answers: each arm's answers to them.
    """
    rng, found = random.Random(f"pairs-{seed}"), list[Item]()
    for i, prompt in enumerate(prompts):
        pairs = [pair for pair in combinations(answers, 2) if answers[pair[0]][i] != answers[pair[1]][i]]
        for pair in rng.sample(pairs, min(PAIRS, len(pairs))):
            first, second = (Answer(text=answers[arm][i], policy=arm) for arm in rng.sample(pair, 2))
            found.append(make_item(prompt, (first, second)))
    return found


def collect_votes(path: Path, items: Sequence[Item], seed: int) -> int:
    """Make the project, in place of an earlier one, and have simulated raters judge it; returns the votes."""
    path.unlink(missing_ok=True)
    with Store.create(path, SETTINGS, seed=seed) as store:
        store.add_items(items)
        return rate(store, OVERLAP * len(items), RATERS, seed)
