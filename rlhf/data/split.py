"""Splits rows by prompt into training and held-out rows, so that no stage trains on a held-out prompt."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from rlhf.data.hh import ROLES, messages
from rlhf.records import Demonstration, LabelledAnswer, Message, Messages, Preference, PromptRow, text_of

ROLES_IN_HH = {role: name for name, role in ROLES.items()}


def split_key(row: Demonstration | Preference | LabelledAnswer | PromptRow) -> str:
    """The key by which a row is split: its prompt or, without one, its text."""
    key = canonical_prompt(row.prompt)
    return key if key or not isinstance(row, Demonstration) else text_of(row.completion).strip()


def canonical_prompt(prompt: Messages | str) -> str:
    """One text for a prompt in any form: a string, one user turn, an HH transcript or messages.

    White space around a turn is ignored, and a system text is the same in its own turn and before a string prompt.
    """
    if isinstance(prompt, str):
        if not prompt.lstrip().startswith(f"{ROLES_IN_HH['user']}:"):
            return prompt.strip()
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in messages(prompt))
    turns = [(turn.role, turn.content.strip()) for turn in prompt]
    turns = [turn for turn in turns if turn != ("system", "")]
    if turns[-1:] == [("assistant", "")]:
        turns.pop()  # a transcript ends with the name of the next speaker
    if [role for role, _ in turns] in (["user"], ["system", "user"]):
        return "\n\n".join(text for _, text in turns)
    ends = "" if turns and turns[-1][0] == "assistant" else f"\n\n{ROLES_IN_HH['assistant']}:"
    return "".join(f"\n\n{ROLES_IN_HH.get(role, role.capitalize())}: {text}" for role, text in turns) + ends


def split_by_prompt(
    keys: Sequence[str], held_out_fraction: float, seed: int, train_fraction: float = 1.0
) -> tuple[list[int], list[int]]:
    """Indices of training rows and of held-out rows, each in order.

    A hash of the prompt's text and the seed decides for each row: a prompt is on the same side in every file, and
    regardless of added rows. So the fraction is met on average, not exactly. With two or more distinct prompts neither
    side is empty, unless the fraction is 0; a single prompt is trained on.

    Args:
        keys: ``split_key`` of each row; rows with equal keys stay together.
        held_out_fraction: fraction of the prompts to hold out, in [0, 1).
        seed: different seeds hold out different prompts.
        train_fraction: fraction of the training prompts to use, in (0, 1]; the rest is on neither side. The prompts of
            a smaller fraction are among those of a larger one, and at least one is used.
    """
    draws = {key: _uniform(key, seed) for key in keys}
    held_out = {key for key, draw in draws.items() if draw < held_out_fraction}
    if held_out_fraction > 0 and draws:
        held_out = (held_out | {min(draws, key=draws.__getitem__)}) - {max(draws, key=draws.__getitem__)}
    least = 1 - train_fraction * (1 - held_out_fraction)
    used = {key for key, draw in draws.items() if draw >= least or train_fraction == 1}
    used = (used | {max(draws, key=draws.__getitem__)} if draws else used) - held_out
    train = [i for i, key in enumerate(keys) if key in used]
    return train, [i for i, key in enumerate(keys) if key in held_out]


def _uniform(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on key and seed only."""
    digest = blake2b(key.encode(), digest_size=8, salt=seed.to_bytes(8, "little", signed=True)).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53  # 53 bits, a float's precision, so that it stays below 1.0
