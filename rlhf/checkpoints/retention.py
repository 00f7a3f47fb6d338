"""Which checkpoints stay: pure decisions on steps and scores."""

from __future__ import annotations

from collections.abc import Mapping


def by_score(scores: Mapping[int, float | None]) -> list[int]:
    """Steps that have a score, the best first; of two that are equally good the newer."""
    known = {step: score for step, score in scores.items() if score is not None}
    return sorted(known, key=lambda step: (known[step], step), reverse=True)


def kept(scores: Mapping[int, float | None], keep_last: int, keep_best: int) -> set[int]:
    """The ``keep_last`` newest steps and the ``keep_best`` best of all; one may be both.

    Args:
        scores: scores by step, None where unknown; higher is better.
    """
    newest = sorted(scores, reverse=True)[:keep_last]
    return {*newest, *by_score(scores)[:keep_best]}
