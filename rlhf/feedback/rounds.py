"""A round of feedback: the prompts that are answered next, and the name of the round."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

from rlhf.data.chat import transcript
from rlhf.feedback.records import Item
from rlhf.records import Messages

ROUND_NAME = re.compile(r"round-([0-9]{1,9})")
SEEDS_OF_A_ROUND = 10**6
"""Seeds that each round has for its answers."""


def next_round(items: Sequence[Item]) -> str:
    """Name of a new round: ``round-<n>``, n one above the highest number in the project."""
    last = last_round(items)
    return f"round-{_number(last) + 1}"


def last_round(items: Sequence[Item]) -> str:
    """Name of the round with the highest number; empty if there is none."""
    return max((item.round for item in items if ROUND_NAME.fullmatch(item.round)), key=_number, default="")


def _number(round: str) -> int:
    found = ROUND_NAME.fullmatch(round)
    return int(found[1]) if found else 0


def first_seed(seed: int, round: str) -> int:
    """Seed of a round's first answer: rounds of one project sample other answers to the same prompt."""
    digest = hashlib.sha256(f"{seed} {round}".encode()).digest()
    return int.from_bytes(digest[:2]) * SEEDS_OF_A_ROUND % 2**31


def choose_prompts(prompts: Sequence[Messages | str], items: Sequence[Item], count: int, seed: int) -> list[int]:
    """Indices of the ``count`` prompts with the fewest items in the project, equal ones in an order of the seed.

    A prompt that occurs several times is chosen once.
    """
    asked = Counter(transcript(item.prompt) for item in items)
    texts = [transcript(prompt) for prompt in prompts]
    first = {text: i for i, text in reversed(list(enumerate(texts)))}

    def rank(text: str) -> tuple[int, bytes]:
        return asked[text], hashlib.sha256(f"{seed} {text}".encode(errors="surrogatepass")).digest()

    return sorted(first[text] for text in sorted(first, key=rank)[:count])
