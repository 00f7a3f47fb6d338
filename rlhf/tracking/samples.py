"""Which samples are shown: a table is bounded however long the run, and the same for the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Pick = Literal["best", "worst", "random"]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One response, to be read by people."""

    prompt: str
    response: str
    score: float
    """Reward of the whole response, after the missing-end penalty."""
    kl: float
    """Sequence KL to the reference in nats, estimated on this response."""
    advantage: float
    """Mean over its trained tokens."""
    finish_reason: str
    """``stop`` or ``length``."""
    weight_version: int
    """Version of the policy weights that wrote it."""
    pick: Pick
    """Why it is shown: drawn at random, or the best or the worst of its batch besides those."""


COLUMNS = ("which", "step", "prompt", "response", "score", "kl", "advantage", "finish_reason", "weight_version")
"""Of a table."""


def pick(scores: Sequence[float], drawn: Sequence[int], count: int) -> list[tuple[int, Pick]]:
    """Which ``count`` samples of a batch are shown, and why.

    Args:
        scores: (B,) of all samples.
        drawn: those that may be shown, in random order. The first of them are the random ones, whatever their scores.
            Of three or more, two are the best and the worst of those left: so the best and the worst of all are shown.
    """
    chosen, rest = drawn[: count - 2], drawn[count - 2 :]
    if count < 3 or len(rest) < 2:
        return [(i, "random") for i in drawn[:count]]
    best = max(rest, key=lambda i: scores[i])
    worst = min((i for i in rest if i != best), key=lambda i: scores[i])
    return [(best, "best"), (worst, "worst"), *((i, "random") for i in chosen)]


def table(rows: Sequence[Row], count: int, seed: Sequence[int]) -> list[tuple[Any, ...]]:
    """At most ``count`` rows as ``COLUMNS``: a third the best of all, a third the worst, the rest random ones, in this
    order; ``seed`` says which."""
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
    """The samples since the last table, by step: a step that is done again takes the place of what it was."""

    def __init__(self, every: int, rows: Sequence[Row] = ()) -> None:
        """Args: rows are those of a run that goes on; of them the ones since its last table are kept."""
        self._every = every
        self._steps: dict[int, list[Row]] = {}
        for row in rows:
            self._steps.setdefault(int(row["step"]), []).append(row)
        self._forget(max(self._steps, default=0))

    def add(self, step: int, rows: Sequence[Row]) -> list[Row] | None:
        """Take the samples of a step; where a table is due after it, all since the one before."""
        self._steps[step] = list(rows)
        self._forget(step)
        if (step + 1) % self._every:
            return None
        return [row for kept in sorted(self._steps) for row in self._steps[kept]]

    def _forget(self, step: int) -> None:
        """Keep the steps since the table before ``step``, and none after it."""
        begin = step - step % self._every
        self._steps = {kept: rows for kept, rows in self._steps.items() if begin <= kept <= step}
