"""How well a reward model agrees with people, and what to compare that with.

Shapes: K pairs; rewards and sequences come chosen and rejected in turn, 2K.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rlhf.errors import UserError
from rlhf.evaluation.intervals import wilson_interval
from rlhf.types import Float32, Sequences

CEILING = "ceiling by the raters' noise"


def preference_accuracy(rewards: Float32, margins: Float32) -> dict[str, float]:
    """Share of pairs ranked as people did, with its 95% interval, and the mean loss; a tie counts as wrong.

    Shapes: rewards (2K,), margins (K,), K ≥ 1.
    """
    ahead = rewards[0::2].astype(np.float64) - rewards[1::2].astype(np.float64)
    correct = int((ahead > 0).sum())
    low, high = wilson_interval(correct, len(ahead))
    return {
        "eval/accuracy": correct / len(ahead),
        "eval/accuracy_ci_low": low,
        "eval/accuracy_ci_high": high,
        "eval/loss": float(np.logaddexp(0.0, margins - ahead).mean()),
    }


def shorter_wins(pairs: Sequences) -> float:
    """Share of comparisons whose chosen response has fewer tokens: accuracy's baseline.

    Equal lengths count one half.
    """
    chosen, rejected = pairs.response_lengths[0::2], pairs.response_lengths[1::2]
    return float(((chosen < rejected) + 0.5 * (chosen == rejected)).mean()) if len(chosen) else 0.0


def accuracy_ceiling(file: str | None) -> dict[str, float | str]:
    """The best accuracy that the labels' noise allows, read from the recipe's file."""
    if file is None:
        return {}
    try:
        return {CEILING: float(json.loads(Path(file).read_text(encoding="utf-8-sig"))["accuracy_ceiling"])}
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        what = f"reward.ceiling: {file} gives no number accuracy_ceiling"
        raise UserError(what, str(error), "give a JSON file with that number, or leave the key out") from error
