"""One KPI's data as an effect with its tests, oriented so that a larger effect is better.

Shapes: U independent units: prompts, each the mean of its items.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from rlhf.serving import fixed_tests, sequential_tests
from rlhf.types import Float64

PValue = Callable[[float], float]
_T_TEST = ("Student's t", "Student's t, with a range that the values show; give range if worse ones are possible")
MOST_MORE = 10_000_000
"""Samples beyond which no number is given."""


@dataclass(frozen=True, kw_only=True)
class UnitValues:
    """Values of independent units, (U,), in the order in which they came in."""

    values: Float64
    range: fixed_tests.Limits | None
    """Lowest and highest possible value."""
    is_range_seen: bool = False
    """Whether the range is only that of the values: worse ones may be possible."""


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """Successes among independent trials."""

    successes: int
    n: int

    def with_more(self, more: Proportion) -> Proportion:
        """Two groups of trials together."""
        return Proportion(successes=self.successes + more.successes, n=self.n + more.n)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """An effect and the tests of it."""

    n: int
    """Independent units; those of the smaller arm where both have their own."""
    effect: float
    """NaN without data."""
    deviation: float
    """Standard deviation of one unit's contribution to the effect."""
    deviation_at: Callable[[float], float]
    """The same if the effect were the bar: another one for a proportion."""
    p_above: PValue
    """Bar → p-value of "the effect is at most the bar"."""
    p_below: PValue
    """Bar → p-value of "the effect is at least the bar"."""
    range: fixed_tests.Limits
    """Where the effect can lie."""
    unknowns: int = 1
    """Parameters that a sequential test does not know: 2 for two arms with a proportion each."""
    method: str

    def lower_bound(self, level: float) -> float:
        """The largest bar that the effect is shown to exceed at a level; the range's end if there is none."""
        return _crossing(self.p_above, level, self.range[0], self.effect)

    def upper_bound(self, level: float) -> float:
        """The smallest bar that the effect is shown to stay below."""
        return _crossing(self.p_below, level, self.range[1], self.effect)


def measure_values(data: UnitValues, is_sequential: bool) -> Measurement:
    """The mean of values. Values in [0, 1] that are all 0 or 1 are a proportion."""
    values, limits = data.values, data.range
    if limits == (0.0, 1.0) and np.isin(values, (0.0, 1.0)).all():
        return measure_proportion(Proportion(successes=int(values.sum()), n=len(values)), is_sequential)
    tests = sequential_tests if is_sequential else fixed_tests
    mirrored = None if limits is None else (-limits[1], -limits[0])
    effect = float(values.mean()) if len(values) else math.nan
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if limits is not None:  # equal values do not mean that all are
        deviation = max(deviation, (limits[1] - limits[0]) / 2 / math.sqrt(max(len(values), 1)))
    spread = 100 * max(deviation, abs(effect), 1e-9)
    return Measurement(
        n=len(values),
        effect=effect,
        deviation=deviation,
        deviation_at=lambda bar: deviation,
        p_above=lambda bar: tests.mean_p(values, bar, limits),
        p_below=lambda bar: tests.mean_p(-values, -bar, mirrored),
        range=limits or (effect - spread, effect + spread),
        method="betting on a bounded mean" if is_sequential else _T_TEST[data.is_range_seen],
    )


def measure_proportion(data: Proportion, is_sequential: bool) -> Measurement:
    """A proportion of independent trials."""
    tests, successes, n = sequential_tests if is_sequential else fixed_tests, data.successes, data.n
    return Measurement(
        n=n,
        effect=successes / n if n else math.nan,
        deviation=_deviation(successes, n),
        deviation_at=lambda bar: math.sqrt(max(0.0, bar * (1 - bar))),
        p_above=lambda bar: tests.proportion_p(successes, n, bar),
        p_below=lambda bar: tests.proportion_p(n - successes, n, 1 - bar),
        range=(0.0, 1.0),
        method="mixture likelihood ratio of a proportion" if is_sequential else "exact binomial",
    )


def measure_difference(candidate: Proportion, production: Proportion, is_sequential: bool) -> Measurement:
    """The difference of two independent proportions, candidate minus production."""
    tests = sequential_tests if is_sequential else fixed_tests
    won, n = (candidate.successes, production.successes), (candidate.n, production.n)
    lost = (n[0] - won[0], n[1] - won[1])
    # Per unit of the smaller arm, of which the larger one has n[i] / min(n).
    variances = [_deviation(won[i], n[i]) ** 2 * min(n) / max(n[i], 1) for i in range(2)]
    return Measurement(
        n=min(n),
        effect=won[0] / n[0] - won[1] / n[1] if min(n) else math.nan,
        deviation=math.sqrt(sum(variances)),
        deviation_at=lambda bar: math.sqrt(sum(variances)),
        p_above=lambda bar: tests.difference_p(won, n, bar),
        p_below=lambda bar: tests.difference_p(lost, n, -bar),
        range=(-1.0, 1.0),
        unknowns=2,
        method="mixture likelihood ratios of two proportions" if is_sequential else "score test of two proportions",
    )


def more_needed(found: Measurement, bar: float, level: float, power: float, is_sequential: bool) -> int | None:
    """Units beyond those measured until the test decides with a probability of ``power``, if the observed effect is
    the true one; None if the effect is at the bar, or far too many are needed.

    ``fixed``: ((z_{1−level} s₀ + z_power s) / distance)², with s₀ the deviation at the bar. ``sequential``: the
    evidence grows by distance²/2s₀² a unit, and must reach log(1/level) + ½ log(1 + n/30) for each unknown, about the
    cost of not knowing it; √2 times its root takes the place of z_{1−level}.
    """
    distance = abs(found.effect - bar)
    deviation, at_bar = found.deviation, found.deviation_at(bar)
    if not distance > deviation * 1e-4:
        return None
    z, quantile = float(ndtri(power)), float(ndtri(1 - level))
    needed = 1.0
    for _ in range(30 if is_sequential else 1):
        if is_sequential:
            quantile = math.sqrt(
                2 * (math.log(1 / level) + found.unknowns / 2 * math.log1p(needed / sequential_tests.PRIOR_SIZE))
            )
        needed = ((quantile * at_bar + z * deviation) / distance) ** 2
    more = max(1, math.ceil(needed) - found.n)
    return more if more < MOST_MORE else None


def _deviation(successes: int, n: int) -> float:
    """Of one trial, with one success and one failure added, so that a faultless arm has one too."""
    rate = (successes + 1) / (n + 2)
    return math.sqrt(rate * (1 - rate))


def _crossing(p: PValue, level: float, end: float, effect: float) -> float:
    """The bar between ``end`` and the effect where the p-value crosses the level, by bisection."""
    if math.isnan(effect) or p(end) > level:
        return end
    shown, unknown = end, effect
    for _ in range(40):
        middle = (shown + unknown) / 2
        if p(middle) <= level:
            shown = middle
        else:
            unknown = middle
    return shown
