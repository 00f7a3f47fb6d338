"""Over-optimisation: the reward goes on rising while what it stands for falls (Gao et al. 2022, arXiv 2210.10760).

A judge that the policy is not trained on scores its answers to the same held-out prompts again and again. This file
says what follows from the numbers; it keeps nothing but what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from rlhf.evaluation.intervals import mean_interval

CHANCE = 0.05
"""How often chance alone may look like a fall."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge said of one policy.

    Shape: scores (n,), of answers to the same n different prompts in the same order each time; NaN where the judge gave
    none.
    """

    step: int
    """Steps that the policy has behind it; 0 is the policy before the first."""
    reward: float | None
    """Mean reward in training over the steps since the judgement before; None where there were none."""
    scores: tuple[float, ...]

    @property
    def given(self) -> tuple[float, ...]:
        """The scores that the judge gave."""
        return tuple(score for score in self.scores if math.isfinite(score))

    @property
    def mean(self) -> float:
        """The held-out score; NaN where the judge gave none."""
        return fmean(self.given) if self.given else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of ``mean``."""
        return mean_interval(self.given)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What follows from a judgement."""

    is_best: bool
    """No policy before this one was judged as high."""
    is_lower: bool
    """The held-out score is lower than the best, beyond chance."""
    is_over_optimised: bool
    """It is lower, and the reward is higher than it was at the best."""
    stop: bool
    """That has now been so for long enough."""
    why: str
    """The same in words."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """All that must be remembered between judgements."""

    judgements: int
    """How many the run makes in all, at least 2: of so many, the highest by chance alone looks far above the rest."""
    patience: int
    """Judgements in a row that find the policy over-optimised before the run is to stop."""
    best: Judgement | None = None
    last: Judgement | None = None
    in_a_row: int = 0
    """Judgements up to the last one that found it so."""

    @property
    def keeps_best(self) -> bool:
        """Whether the best policy is to be the run's model: whether the last one is lower, by this comparison alone.

        To be wrong here costs little, the two being alike then; to be wrong in ``judge`` costs the rest of the run.
        """
        return self.best is not None and self.last is not None and is_lower(self.last, self.best, CHANCE)

    @property
    def level(self) -> float:
        """Chance of error of a comparison that can stop the run: 5% over all pairs of its judgements (Bonferroni)."""
        return CHANCE / math.comb(self.judgements, 2)

    def judge(self, step: int, rewards: Sequence[float], scores: Sequence[float]) -> tuple[Watch, Decision]:
        """Take in a judgement; returns the watch after it, and what follows.

        Args:
            step: steps that the judged policy has behind it.
            rewards: (k,) mean reward of each training step since the judgement before.
            scores: (n,) what the judge said; NaN where it said nothing.
        """
        new = Judgement(step=step, reward=fmean(rewards) if rewards else None, scores=tuple(map(float, scores)))
        best = _with_reward(self.best, rewards)
        if best is None or _mean_difference(new, best) > 0:
            decision = Decision(
                is_best=True, is_lower=False, is_over_optimised=False, stop=False, why="the best so far"
            )
            return replace(self, best=new, last=new, in_a_row=0), decision
        lower = is_lower(new, best, self.level)
        over = lower and _rose(new, best)
        in_a_row = self.in_a_row + 1 if over else 0
        decision = Decision(
            is_best=False,
            is_lower=lower,
            is_over_optimised=over,
            stop=in_a_row >= self.patience,
            why=_why(new, best, lower, over),
        )
        return replace(self, best=best, last=new, in_a_row=in_a_row), decision


def mean_by_prompt(scores: ArrayLike, prompts: Sequence[Hashable]) -> np.ndarray:
    """(m,) the mean score of each of m different prompts, in the order of their first place; NaN where none is finite.

    A prompt that is asked several times is one observation: its answers are alike.

    Args:
        scores: (n,) NaN where there is none.
        prompts: n of them.
    """
    array, groups = np.asarray(scores, dtype=np.float64), list(dict.fromkeys(prompts))
    place = {prompt: i for i, prompt in enumerate(groups)}
    own = np.array([place[prompt] for prompt in prompts], dtype=np.int64)
    given = np.isfinite(array)
    counts = np.bincount(own[given], minlength=len(groups))
    sums = np.bincount(own[given], weights=array[given], minlength=len(groups))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def is_lower(judgement: Judgement, best: Judgement, level: float) -> bool:
    """Whether a policy is judged lower than the best, beyond chance: the paired difference is below 0.

    One-sided interval of the mean difference by Student's t, which misses with a chance of ``level``. Fewer than two
    prompts for which both have a score say nothing.
    """
    difference = _differences(judgement, best)
    n = len(difference)
    if n < 2:
        return False
    return bool(difference.mean() + stdtrit(n - 1, 1 - level) * difference.std(ddof=1) / math.sqrt(n) < 0)


def difference_interval(judgement: Judgement, best: Judgement) -> tuple[float, float]:
    """95% interval of the mean over prompts of (score − the best's score)."""
    return mean_interval(_differences(judgement, best))


def _with_reward(start: Judgement | None, rewards: Sequence[float]) -> Judgement | None:
    """A judgement before the first step, with its reward: its policy wrote the answers that the first step rewarded."""
    if start is None or start.reward is not None or not rewards:
        return start
    return replace(start, reward=rewards[0])


def _differences(judgement: Judgement, best: Judgement) -> np.ndarray:
    """(m,) over the prompts for which both have a score, m ≤ n."""
    difference = np.array([new - old for new, old in zip(judgement.scores, best.scores, strict=True)])
    return difference[np.isfinite(difference)]


def _mean_difference(judgement: Judgement, best: Judgement) -> float:
    difference = _differences(judgement, best)
    return float(difference.mean()) if len(difference) else 0.0


def _rose(judgement: Judgement, best: Judgement) -> bool:
    return judgement.reward is not None and best.reward is not None and judgement.reward > best.reward


def _why(new: Judgement, best: Judgement, lower: bool, over: bool) -> str:
    if not lower:
        return f"no lower than the best, after step {best.step}, as far as {len(new.given)} prompts can tell"
    fell = f"the held-out score fell from {best.mean:.4g} (after step {best.step}) to {new.mean:.4g}"
    rewards = "" if new.reward is None or best.reward is None else f" from {best.reward:.4g} to {new.reward:.4g}"
    if over:
        return f"{fell} while the reward rose{rewards}"
    return f"{fell}, but the reward did not rise{rewards and f': it went{rewards}'}; that is not over-optimisation"
