"""The problems' rewards, as functions of text. A letter is a token, and special tokens are left out of the text."""

from __future__ import annotations

from examples.optima.closed_form import FIRST_GOOD, LAST_GOOD, TOKENS, bandit_rewards


def bandit(prompts: list[str], responses: list[str]) -> list[float]:
    """Problem A: the reward of answer ``F`` to prompt ``2``."""
    table = bandit_rewards()
    pairs = zip(prompts, responses, strict=True)
    return [float(table[int(prompt), ord(response) - ord("A")]) for prompt, response in pairs]


def token_class(prompts: list[str], responses: list[str]) -> list[float]:
    """Problem B, and the gold of problem D: the share of the sixteen tokens that are in the class, the capitals."""
    return [sum(letter.isupper() for letter in response) / TOKENS for response in responses]


def length(prompts: list[str], responses: list[str]) -> list[float]:
    """Problem C: 1 for a good length, which counts the end token that the text leaves out."""
    return [float(FIRST_GOOD <= len(response) + 1 <= LAST_GOOD) for response in responses]
