"""Invented keys of two words with numbers: every document is one passage, and its number is known from nowhere else."""

from __future__ import annotations

import random
from itertools import product

from rlhf.records import RowLocation
from rlhf.retrieval.passages import Passage, Question

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


SECOND_WORDS = 16


def make_corpus(documents: int, seed: int) -> tuple[list[Passage], list[Question]]:
    """``documents`` passages ``bak dol 47.`` of different keys, and as many questions ``bak dol?``.

    About 15 documents share a first word, and many more a second one. So the nearest distractors have the rarer first
    word of the question, and only the second tells them apart.
    """
    rng = random.Random(f"keys-{seed}")
    syllables = ["".join(parts) for parts in product(CONSONANTS, VOWELS, CONSONANTS)]
    count = documents // (SECOND_WORDS - 1) + 1
    chosen = rng.sample(syllables, SECOND_WORDS + count)
    keys = rng.sample(list(product(chosen[SECOND_WORDS:], chosen[:SECOND_WORDS])), documents)
    passages, questions = [], []
    for line, (first, second) in enumerate(keys, start=1):
        name, value = f"{first} {second}", str(rng.randint(10, 99))
        passages.append(Passage(id=name, text=f"{name} {value}.", document=name))
        source = RowLocation("keys", line)
        questions.append(Question(text=f"{name}?", answer=value, oracles=(name,), source=source))
    return passages, questions
