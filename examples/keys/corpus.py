"""Invented keys with values of three numbers: only the passage ``bak red 47 12 83.`` tells the value of ``bak red``.

Passages with the same first word are one document, which the split keeps on one side. For a question BM25 ranks
passages with its first word highest, because that is the rarer one: only the second word tells these passages apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

from rlhf.storage.jsonl import to_line

CONSONANTS, VOWELS = "bdfghjklmnprstvwxz", "aeiou"
NUMBERS = [str(number) for number in range(10, 100)]
NUMBERS_EACH = 3
"""Numbers of a value: small models learn to copy sooner if several tokens in a row are to be copied."""
SECOND = (
    "red", "blue", "green", "black", "white", "brown", "pink", "grey", "gold", "ivory", "amber", "coral", "olive",
    "plum", "teal", "violet",
)  # fmt: skip


def make_passages(documents: int, seed: int) -> Iterator[Mapping[str, str]]:
    """``documents`` documents of 16 passages each."""
    rng = random.Random(f"keys-{seed}")
    words = ["".join(parts) for parts in product(CONSONANTS, VOWELS, CONSONANTS)]
    for first in rng.sample(words, documents):
        for second in SECOND:
            key = f"{first} {second}"
            yield {"id": key, "text": f"{key} {' '.join(rng.sample(NUMBERS, NUMBERS_EACH))}.", "document": first}


def write_corpus(folder: Path, documents: int, seed: int) -> None:
    """Write ``passages.jsonl`` and ``questions.jsonl``, one question about every passage."""
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
    for name, rows in (("passages", passages), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(map(to_line, rows)), encoding="utf-8")
