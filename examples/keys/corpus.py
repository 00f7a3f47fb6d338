"""Invented keys with values of three numbers: only ``bak dol red 47 12 83.`` tells the value of ``bak dol red``.

Passages with the same first two words are one document, which the split keeps on one side. For a question BM25 ranks
its document's passages highest: only the third word tells them apart. The base model has seen every word, in random
order, and no key with its value.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

from examples.repeats import SYLLABLES, make_repeats
from rlhf.storage.jsonl import to_line

KEY_WORDS = SYLLABLES[::8]
"""63 words, of which a document has two."""
NUMBERS = [str(number) for number in range(10, 100)]
NUMBERS_EACH = 3
"""Numbers of a value."""
REPEATS = 30_000
"""Rows from which the base model learns to copy."""
LAST = (
    "red", "blue", "green", "black", "white", "brown", "pink", "grey", "gold", "ivory", "amber", "coral", "olive",
    "plum", "teal", "violet",
)  # fmt: skip


def make_passages(documents: int, seed: int) -> Iterator[Mapping[str, str]]:
    """``documents`` documents of 16 passages each."""
    rng = random.Random(f"keys-{seed}")
    pairs = [" ".join(pair) for pair in combinations(KEY_WORDS, 2)]
    for first in rng.sample(pairs, documents):
        for last in LAST:
            key = f"{first} {last}"
            yield {"id": key, "text": f"{key} {' '.join(rng.sample(NUMBERS, NUMBERS_EACH))}.", "document": first}


def write_corpus(folder: Path, documents: int, seed: int) -> None:
    """Write ``passages.jsonl``, ``questions.jsonl`` with one question about every passage, and ``repeats.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    passages = list(make_passages(documents, seed))
    questions = [
        {
            "question": f"{row['id']}?",
            "answer": row["text"].removeprefix(f"{row['id']} ").rstrip("."),
            "quote": row["text"],
            "oracle": row["id"],
        }
        for row in passages
    ]
    repeats = list(make_repeats([*SYLLABLES, *NUMBERS, *LAST], REPEATS, seed))
    for name, rows in (("passages", passages), ("questions", questions), ("repeats", repeats)):
        (folder / f"{name}.jsonl").write_text("".join(map(to_line, rows)), encoding="utf-8")
