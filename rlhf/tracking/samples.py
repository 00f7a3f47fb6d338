"""Selects the samples shown in tables; the selection is bounded and deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Pick = Literal["best", "worst", "random"]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One response as a row of ``samples.jsonl``."""

    prompt: str
    response: str
    score: float
    """Reward of the whole response, after the missing-end penalty."""
    kl: float
    """Sequence KL to the reference in nats, estimated on this response."""
    advantage: float
    """Mean advantage of its trained tokens."""
    finish_reason: str
    """``stop`` or ``length``."""
    weight_version: int
    """Version of the weights that generated it."""
    pick: Pick
    """Reason for its selection: drawn at random, or the best or the worst of the others."""


COLUMNS = ("which", "step", "prompt", "response", "score", "kl", "advantage", "finish_reason", "weight_version")
"""Columns of a table."""


def pick(scores: Sequence[float], drawn: Sequence[int], count: int) -> list[tuple[int, Pick]]:
    """Select ``count`` samples of a batch, with the reason for each.

    The first of ``drawn`` are selected as random samples, whatever their scores. If ``count`` is at least 3, two of the
    selected samples are the best and the worst of the remaining ones.

    Args:
        scores: (B,) scores of all samples.
        drawn: indices of the samples that may be shown, in random order.
    """
    chosen, rest = drawn[: count - 2], drawn[count - 2 :]
    if count < 3 or len(rest) < 2:
        return [(i, "random") for i in drawn[:count]]
    best = max(rest, key=lambda i: scores[i])
    worst = min((i for i in rest if i != best), key=lambda i: scores[i])
    return [(best, "best"), (worst, "worst"), *((i, "random") for i in chosen)]


def table(rows: Sequence[Row], count: int, seed: Sequence[int]) -> list[tuple[Any, ...]]:
    """Select at most ``count`` rows as ``COLUMNS``: one third best, one third worst, the rest random by ``seed``."""
    scored = [row for row in rows if isinstance(row.get("score"), (int, float))]
    ranked = sorted(range(len(scored)), key=lambda i: scored[i]["score"], reverse=True)
    third = min(-(-count // 3), len(ranked) // 2)
    best, worst = ranked[:third], ranked[len(ranked) - min(third, count - third) :]
    taken = {*best, *worst}
    left = [i for i, row in enumerate(scored) if i not in taken and row.get("pick", "random") == "random"]
    order = np.random.default_rng(list(seed)).permutation(len(left))[: count - len(taken)]
    named = [(i, "best") for i in best] + [(i, "worst") for i in reversed(worst)]
    named += [(left[k], "random") for k in sorted(order.tolist())]
    return [(which, *(scored[i].get(column) for column in COLUMNS[1:])) for i, which in named]


class Window:
    """Samples since the last table, by step; a repeated step replaces its earlier samples."""

    def __init__(self, every: int, rows: Sequence[Row] = ()) -> None:
        """Begin with the earlier samples of a resumed run.

        Args:
            every: steps between two tables.
            rows: earlier samples, of which those since the last table are kept.
        """
        self._every = every
        self._steps: dict[int, list[Row]] = {}
        for row in rows:
            self._steps.setdefault(int(row["step"]), []).append(row)
        self._forget(max(self._steps, default=0))

    def add(self, step: int, rows: Sequence[Row]) -> list[Row] | None:
        """Add the samples of a step; returns all samples since the last table if a table is due, else None."""
        self._steps[step] = list(rows)
        self._forget(step)
        if (step + 1) % self._every:
            return None
        return [row for kept in sorted(self._steps) for row in self._steps[kept]]

    def _forget(self, step: int) -> None:
        """Keep only the steps from the last table before ``step`` up to ``step``."""
        begin = step - step % self._every
        self._steps = {kept: rows for kept, rows in self._steps.items() if begin <= kept <= step}
