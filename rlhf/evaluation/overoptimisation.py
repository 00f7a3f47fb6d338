"""Detects over-optimisation: the reward rises while the quality it approximates falls (Gao et al. 2022,
arXiv 2210.10760).

A held-out scorer, which the policy is not trained on, scores the policy's answers to the same held-out prompts at
intervals. This file decides from the scores whether the run should stop; its state is immutable.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit  # quantiles of Student's t: scipy.stats takes a second to import

from rlhf.evaluation.intervals import mean_interval

CHANCE = 0.05
"""Probability of a false detection."""


@dataclass(frozen=True, kw_only=True)
class HeldOutEvaluation:
    """One held-out evaluation of the policy.

    Shape: scores (n,), one for each of n distinct prompts, always the same and in the same order; NaN where the scorer
    gave none.
    """

    step: int
    """Number of finished steps; 0 is the policy before the first step."""
    reward: float | None
    """Mean training reward over the steps since the previous evaluation; None if there were none."""
    scores: tuple[float, ...]

    @property
    def given(self) -> tuple[float, ...]:
        """The finite scores."""
        return tuple(score for score in self.scores if math.isfinite(score))

    @property
    def mean(self) -> float:
        """The mean held-out score; NaN if no score is finite."""
        return fmean(self.given) if self.given else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of ``mean``."""
        return mean_interval(self.given)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Result of comparing a held-out evaluation with the best one."""

    is_best: bool
    """The held-out score is the highest so far."""
    is_lower: bool
    """The held-out score is significantly lower than the best."""
    is_over_optimised: bool
    """``is_lower``, and the reward is higher than at the best evaluation."""
    stop: bool
    """The policy was over-optimised in ``patience`` consecutive evaluations."""
    why: str
    """The reason as text."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """State of early stopping between held-out evaluations."""

    judgements: int
    """Number of evaluations of the whole run, at least 2; the significance level is corrected for it."""
    patience: int
    """Consecutive over-optimised evaluations after which the run stops."""
    best: HeldOutEvaluation | None = None
    last: HeldOutEvaluation | None = None
    in_a_row: int = 0
    """Consecutive over-optimised evaluations up to the last one."""

    @property
    def keeps_best(self) -> bool:
        """Whether the run should return the best policy: whether the last one is lower, without a correction of level.

        An error here costs little, because the two policies are then alike; one in ``evaluate`` ends the run early.
        """
        return self.best is not None and self.last is not None and is_lower(self.last, self.best, CHANCE)

    @property
    def level(self) -> float:
        """Significance level of one comparison in ``evaluate``: 5% over all pairs of evaluations (Bonferroni)."""
        return CHANCE / math.comb(self.judgements, 2)

    def evaluate(self, step: int, rewards: Sequence[float], scores: Sequence[float]) -> tuple[Watch, Decision]:
        """Add a held-out evaluation; returns the new state and the decision.

        Args:
            step: number of finished steps.
            rewards: (k,) mean reward of each training step since the previous evaluation.
            scores: (n,) scores of the held-out scorer; NaN where it gave none.
        """
        new = HeldOutEvaluation(step=step, reward=fmean(rewards) if rewards else None, scores=tuple(map(float, scores)))
        best = _with_reward(self.best, rewards)
        if best is None or _mean_difference(new, best) > 0:
            decision = Decision(
                is_best=True, is_lower=False, is_over_optimised=False, stop=False, why="the best so far"
            )
            return replace(self, best=new, last=new, in_a_row=0), decision
        lower = is_lower(new, best, self.level)
        reward_rose = new.reward is not None and best.reward is not None and new.reward > best.reward
        over = lower and reward_rose
        in_a_row = self.in_a_row + 1 if over else 0
        decision = Decision(
            is_best=False,
            is_lower=lower,
            is_over_optimised=over,
            stop=in_a_row >= self.patience,
            why=_explain(new, best, lower, over),
        )
        return replace(self, best=best, last=new, in_a_row=in_a_row), decision


def mean_by_prompt(scores: ArrayLike, prompts: Sequence[Hashable]) -> np.ndarray:
    """(m,) mean score of each of m distinct prompts, in order of first occurrence; NaN if none is finite.

    Repeated prompts form one observation, because their answers are correlated.

    Args:
        scores: (n,) NaN where a score is missing.
        prompts: n prompts.
    """
    array, distinct = np.asarray(scores, dtype=np.float64), list(dict.fromkeys(prompts))
    index = {prompt: i for i, prompt in enumerate(distinct)}
    group = np.array([index[prompt] for prompt in prompts], dtype=np.int64)
    given = np.isfinite(array)
    counts = np.bincount(group[given], minlength=len(distinct))
    sums = np.bincount(group[given], weights=array[given], minlength=len(distinct))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def is_lower(new: HeldOutEvaluation, best: HeldOutEvaluation, level: float) -> bool:
    """Whether a policy's held-out score is significantly lower than the best, by a one-sided paired t-test.

    ``level`` is the significance level. False if fewer than two prompts have both scores. Computed from the quantile,
    because scipy's ``ttest_1samp`` warns if all differences are equal.
    """
    difference = _differences(new, best)
    n = len(difference)
    if n < 2:
        return False
    return bool(difference.mean() + stdtrit(n - 1, 1 - level) * difference.std(ddof=1) / math.sqrt(n) < 0)


def difference_interval(new: HeldOutEvaluation, best: HeldOutEvaluation) -> tuple[float, float]:
    """95% interval of the mean over prompts of (score − score at the best)."""
    return mean_interval(_differences(new, best))


def _with_reward(start: HeldOutEvaluation | None, rewards: Sequence[float]) -> HeldOutEvaluation | None:
    """Set the reward of the evaluation before the first step to that of the first step, which its policy sampled."""
    if start is None or start.reward is not None or not rewards:
        return start
    return replace(start, reward=rewards[0])


def _differences(new: HeldOutEvaluation, best: HeldOutEvaluation) -> np.ndarray:
    """(m,) score differences over the m ≤ n prompts that have both scores."""
    difference = np.array([new - old for new, old in zip(new.scores, best.scores, strict=True)])
    return difference[np.isfinite(difference)]


def _mean_difference(new: HeldOutEvaluation, best: HeldOutEvaluation) -> float:
    difference = _differences(new, best)
    return float(difference.mean()) if len(difference) else 0.0


def _explain(new: HeldOutEvaluation, best: HeldOutEvaluation, lower: bool, over: bool) -> str:
    if not lower:
        return f"not significantly lower than the best, after step {best.step}, over {len(new.given)} prompts"
    fell = f"the held-out score fell from {best.mean:.4g} (after step {best.step}) to {new.mean:.4g}"
    rewards = "" if new.reward is None or best.reward is None else f" from {best.reward:.4g} to {new.reward:.4g}"
    if over:
        return f"{fell} while the reward rose{rewards}"
    return f"{fell}, but the reward did not rise{rewards and f': it went{rewards}'}; that is not over-optimisation"
