"""Training and held-out rows, split by prompt: what is measured was never trained on, in any stage."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b


def split_by_prompt(keys: Sequence[str], held_out_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of training rows and of held-out rows, each in order.

    A hash of the prompt's text and the seed decides, row by row: a prompt falls on the same side in every file and
    however many rows are added. The share is therefore met on average, not exactly. With two or more distinct
    prompts neither side is left empty, unless the fraction is 0.

    Args:
        keys: the prompt's text of each row; rows with equal keys stay together.
        held_out_fraction: share of the prompts to hold out, in [0, 1).
        seed: another seed holds out other prompts.
    """
    draws = {key: _uniform(key, seed) for key in keys}
    held_out = {key for key, draw in draws.items() if draw < held_out_fraction}
    if held_out_fraction > 0 and len(draws) >= 2:
        held_out = (held_out | {min(draws, key=draws.__getitem__)}) - {max(draws, key=draws.__getitem__)}
    train = [i for i, key in enumerate(keys) if key not in held_out]
    return train, [i for i, key in enumerate(keys) if key in held_out]


def _uniform(key: str, seed: int) -> float:
    """In [0, 1), a fixed function of key and seed."""
    digest = blake2b(key.encode(), digest_size=8, salt=seed.to_bytes(8, "little", signed=True)).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53  # 53 bits, what a float holds, so that 1.0 is never reached
