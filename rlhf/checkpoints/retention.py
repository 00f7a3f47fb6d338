"""Decides which checkpoints are kept, by steps and scores."""

from __future__ import annotations

from collections.abc import Mapping


def by_score(scores: Mapping[int, float | None]) -> list[int]:
    """Steps with a score, the best first; ties are ordered by step, the newer first."""
    known = {step: score for step, score in scores.items() if score is not None}
    return sorted(known, key=lambda step: (known[step], step), reverse=True)


def kept(scores: Mapping[int, float | None], keep_last: int, keep_best: int) -> set[int]:
    """Return the ``keep_last`` newest steps and the ``keep_best`` best ones, which may overlap.

    Args:
        scores: scores by step, None if unknown; higher is better.
    """
    newest = sorted(scores, reverse=True)[:keep_last]
    return {*newest, *by_score(scores)[:keep_best]}
