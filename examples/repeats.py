"""Random words in passages of a few words, which are repeated: from them small models learn to look up and to copy.

A transformer that continues a repeated sequence looks for the last token's earlier place and copies what followed
("induction heads", Olsson et al. 2022, arXiv:2209.11895). Two layers learn it all at once, here after some 300 to 500
updates. With passages of one length, or fewer different words, it takes several times as many: then there are other
ways to guess a part of the next words, from their places or from the words that were shown.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

WORDS_SHOWN, REPEATED = 24, 4
"""Words of a prompt, and how often as many follow in the completion."""
SHORTEST, LONGEST = 4, 10
"""Words of a passage; all passages of a row have the same number."""
SYLLABLES = ["".join(parts) for parts in product("bcdfghjklmnprstvwxyz", "aeiou", "bkmnt")]
"""500 words that mean nothing."""


def make_repeats(words: Sequence[str], rows: int, seed: int) -> Iterator[Mapping[str, str]]:
    """Demonstrations whose prompt is passages of random words, and whose completion repeats them in random order."""
    rng = random.Random(f"repeats-{seed}")
    for _ in range(rows):
        size = rng.randint(SHORTEST, LONGEST)
        passages = [rng.choices(words, k=size) for _ in range(WORDS_SHOWN // size)]
        again = rng.choices(passages, k=REPEATED * len(passages))
        yield {"prompt": _join(passages), "completion": " " + _join(again)}


def _join(passages: Sequence[Sequence[str]]) -> str:
    return " ".join(word for passage in passages for word in passage)
