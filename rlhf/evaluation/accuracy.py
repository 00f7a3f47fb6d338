"""Accuracy of a reward model on human comparisons, with a baseline and a ceiling.

Shapes: K pairs, 2K rewards and sequences, chosen and rejected alternating.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlhf.errors import NonFiniteError, UserError
from rlhf.evaluation.intervals import share_interval
from rlhf.records import DataFile
from rlhf.types import Bool, Float32, Int64, Sequences

CEILING = "ceiling by the raters' noise"
CEILING_DATA = "accuracy_ceiling_data"
"""Key of the digests of the comparisons that a ceiling was computed from."""


def preference_accuracy(rewards: Float32, margins: Float32, prompt_ids: Int64) -> dict[str, float]:
    """Fraction of pairs that the rewards rank as people did, its 95% interval, and the mean loss; ties count as wrong.

    The interval is Wilson's, over the effective number of pairs: several pairs of one prompt count as fewer.

    Shapes: rewards (2K,), margins, prompt_ids (K,), K ≥ 1.

    Raises:
        NonFiniteError: a reward is NaN or infinite.
    """
    _require_finite(rewards)
    difference = rewards[0::2].astype(np.float64) - rewards[1::2].astype(np.float64)
    correct = difference > 0
    low, high = share_interval(correct, prompt_ids)
    return {
        "eval/accuracy": float(correct.mean()),
        "eval/accuracy_ci_low": low,
        "eval/accuracy_ci_high": high,
        "eval/loss": float(np.logaddexp(0.0, margins - difference).mean()),
    }


def label_accuracy(rewards: Float32, is_good: Bool, prompt_ids: Int64) -> dict[str, float]:
    """Fraction of answers whose reward is positive exactly if people found them good, its interval, and the mean loss.

    The interval is as of ``preference_accuracy``, the loss −log σ(±r).

    Shapes: (K,) each, K ≥ 1.

    Raises:
        NonFiniteError: a reward is NaN or infinite.
    """
    _require_finite(rewards)
    correct = (rewards > 0) == is_good
    low, high = share_interval(correct, prompt_ids)
    return {
        "eval/accuracy": float(correct.mean()),
        "eval/accuracy_ci_low": low,
        "eval/accuracy_ci_high": high,
        "eval/loss": float(np.logaddexp(0.0, np.where(is_good, -rewards, rewards)).mean()),
    }


def _require_finite(rewards: Float32) -> None:
    bad = int(np.count_nonzero(~np.isfinite(rewards)))
    if bad:
        raise NonFiniteError(f"numbers that are NaN or infinite, in held-out rewards: {bad} of {len(rewards)}")


def most_frequent_label(is_good: Bool) -> float:
    """Fraction of the more frequent label, a baseline of accuracy."""
    return float(max(is_good.mean(), 1 - is_good.mean())) if len(is_good) else 0.0


def shorter_wins(pairs: Sequences) -> float:
    """Fraction of pairs whose chosen response is shorter, a baseline of accuracy; equal lengths count one half."""
    chosen, rejected = pairs.response_lengths[0::2], pairs.response_lengths[1::2]
    return float(((chosen < rejected) + 0.5 * (chosen == rejected)).mean()) if len(chosen) else 0.0


def accuracy_ceiling(file: str | None, data: Sequence[DataFile] | None = None) -> dict[str, float | str]:
    """Read the highest accuracy that the label noise permits from the file that the recipe names.

    Args:
        data: files of the comparisons. If the file names the digests of those that it was computed from, and they are
            others, there is no ceiling. None: the file is only checked.
    """
    if file is None:
        return {}
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
        ceiling, of = float(content["accuracy_ceiling"]), content.get(CEILING_DATA)
        if data is not None and of is not None and {part.digest for part in data} != {*of}:
            return {}
        return {CEILING: ceiling}
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        what = f"reward.ceiling: {file} gives no number accuracy_ceiling"
        raise UserError(what, str(error), "give a JSON file with that number, or reward.ceiling=null") from error
