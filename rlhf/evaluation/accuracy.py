"""Accuracy of a reward model on human comparisons, with a baseline and a ceiling.

Shapes: K pairs, 2K rewards and sequences, chosen and rejected alternating.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rlhf.errors import MachineryError, UserError
from rlhf.evaluation.intervals import share_interval
from rlhf.types import Float32, Int64, Sequences

CEILING = "ceiling by the raters' noise"


def preference_accuracy(rewards: Float32, margins: Float32, prompt_ids: Int64) -> dict[str, float]:
    """Fraction of pairs that the rewards rank as people did, its 95% interval, and the mean loss; ties count as wrong.

    The interval is Wilson's, over the effective number of pairs: several pairs of one prompt count as fewer.

    Shapes: rewards (2K,), margins, prompt_ids (K,), K ≥ 1.

    Raises:
        MachineryError: a reward is NaN or infinite.
    """
    bad = int(np.count_nonzero(~np.isfinite(rewards)))
    if bad:
        raise MachineryError(f"numbers that are NaN or infinite, in held-out rewards: {bad} of {len(rewards)}")
    difference = rewards[0::2].astype(np.float64) - rewards[1::2].astype(np.float64)
    correct = difference > 0
    low, high = share_interval(correct, prompt_ids)
    return {
        "eval/accuracy": float(correct.mean()),
        "eval/accuracy_ci_low": low,
        "eval/accuracy_ci_high": high,
        "eval/loss": float(np.logaddexp(0.0, margins - difference).mean()),
    }


def shorter_wins(pairs: Sequences) -> float:
    """Fraction of pairs whose chosen response is shorter, a baseline of accuracy; equal lengths count one half."""
    chosen, rejected = pairs.response_lengths[0::2], pairs.response_lengths[1::2]
    return float(((chosen < rejected) + 0.5 * (chosen == rejected)).mean()) if len(chosen) else 0.0


def accuracy_ceiling(file: str | None) -> dict[str, float | str]:
    """Read the highest accuracy that the label noise permits from the file that the recipe names."""
    if file is None:
        return {}
    try:
        return {CEILING: float(json.loads(Path(file).read_text(encoding="utf-8-sig"))["accuracy_ceiling"])}
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        what = f"reward.ceiling: {file} gives no number accuracy_ceiling"
        raise UserError(what, str(error), "give a JSON file with that number, or leave the key out") from error
