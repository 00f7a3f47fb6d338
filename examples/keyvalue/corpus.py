"""Invented keys of two words with numbers: every document is one passage, and its number is known from nowhere else."""

from __future__ import annotations

import random
from itertools import product

from rlhf.records import RowLocation
from rlhf.retrieval.passages import Passage, Question

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def make_corpus(documents: int, words: int, seed: int) -> tuple[list[Passage], list[Question]]:
    """``documents`` passages ``bak dol: 47.`` of different keys from ``words`` first and second words, and as many
    questions ``bak dol?``. Documents share words, so that other keys with one of the words are the nearest distractors.
    """
    rng = random.Random(f"keys-{seed}")
    syllables = ["".join(parts) for parts in product(CONSONANTS, VOWELS, CONSONANTS)]
    chosen = rng.sample(syllables, 2 * words)
    keys = rng.sample(list(product(chosen[:words], chosen[words:])), documents)
    passages, questions = [], []
    for line, (first, second) in enumerate(keys, start=1):
        name, value = f"{first} {second}", str(rng.randint(10, 99))
        passages.append(Passage(id=name, text=f"{name}: {value}.", document=name))
        source = RowLocation("keys", line)
        questions.append(Question(text=f"{name}?", answer=value, oracles=(name,), source=source))
    return passages, questions
