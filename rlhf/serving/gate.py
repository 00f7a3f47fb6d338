"""The decision of a gate: each KPI's outcome, and that of all together, with the errors under control.

With ``require: all`` a false promotion needs every KPI to err: if one is truly not good enough, its own test passes
with a probability of at most its level, and the gate too (intersection-union test, Berger 1982, Technometrics 24,
295-300). No correction is needed there. A false failure needs only one KPI of several, so that side is corrected. With
``require: any`` the sides change places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf.serving.gate_result import GateOutcome
from rlhf.serving.gate_spec import GateConfig
from rlhf.serving.kpi import MeasuredKpi
from rlhf.serving.measurement import more_needed

Correction = Literal["holm", "bonferroni", "none"]


@dataclass(frozen=True, kw_only=True)
class KpiResult:
    """One KPI's outcome, in the user's unit."""

    name: str
    metric: str
    decided_by: str
    direction: str
    n: int
    estimate: float | None
    """The candidate's mean, or candidate minus production; None without data."""
    bar: float
    """What the estimate is compared with: threshold, −margin or +margin, by direction."""
    bound: float | None
    """The bound, at the KPI's confidence, on the side of the bar: the lower one if higher is better."""
    p_pass: float
    """p-value of "not good enough", corrected where the gate corrects."""
    p_fail: float
    """p-value of "good enough"."""
    outcome: GateOutcome
    more: int | None
    """Further units that would probably decide, if the estimate is right; None if decided, or if no number would."""
    method: str
    reason: str = ""


def decide(config: GateConfig, measured: Mapping[str, MeasuredKpi]) -> tuple[GateOutcome, tuple[KpiResult, ...]]:
    """Decide on all KPIs.

    Args:
        measured: by name, one for each of ``config.kpis``.
    """
    names = tuple(config.kpis)
    above = [measured[name].measurement.p_above(measured[name].bar) for name in names]
    below = [measured[name].measurement.p_below(measured[name].bar) for name in names]
    levels = [config.level(name) for name in names]
    family = [1 - config.confidence] * len(names)
    if config.require == "all":
        below, pass_levels, fail_levels = adjust(below, config.correction), levels, family
    else:
        above, pass_levels, fail_levels = adjust(above, config.correction), family, levels
    results = tuple(
        _result(config, name, measured[name], (above[i], below[i]), (pass_levels[i], fail_levels[i]))
        for i, name in enumerate(names)
    )
    return combine([each.outcome for each in results], config.require), results


def combine(outcomes: Sequence[GateOutcome], require: Literal["all", "any"]) -> GateOutcome:
    """The gate's outcome from those of its KPIs."""
    decisive, other = GateOutcome.FAIL, GateOutcome.PASS
    if require == "any":
        decisive, other = other, decisive
    if decisive in outcomes:
        return decisive
    return other if all(outcome is other for outcome in outcomes) else GateOutcome.INCONCLUSIVE


def adjust(p_values: Sequence[float], correction: Correction) -> list[float]:
    """p-values that, compared with one level, keep the probability of any false rejection among them at that level.

    ``holm``: Holm 1979, Scand. J. Stat. 6, 65-70; ``bonferroni``: each times their number. Both hold for any dependence
    between the KPIs, and Holm's rejects whatever Bonferroni's does. ``none``: unchanged.
    """
    count = len(p_values)
    if correction == "none":
        return list(p_values)
    if correction == "bonferroni":
        return [min(1.0, count * p) for p in p_values]
    adjusted, largest = [0.0] * count, 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _result(
    config: GateConfig, name: str, found: MeasuredKpi, p_values: tuple[float, float], levels: tuple[float, float]
) -> KpiResult:
    kpi, data = config.kpis[name], found.measurement
    outcome, reason = _outcome(p_values, levels, data.n, kpi.minimum_n)
    more = None
    if outcome is GateOutcome.INCONCLUSIVE and data.n:
        will_pass = data.effect > found.bar
        sequential = config.looks == "sequential"
        needed = more_needed(data, found.bar, levels[0] if will_pass else levels[1], config.power, sequential)
        more = None if needed is None else max(needed, kpi.minimum_n - data.n)
        if data.n > 1 and not data.deviation:  # only without a range
            more = None
            reason = f"its values are all equal, which shows nothing unless kpis.{name}.range says what they can be"
        reason = reason or ("" if more else "the estimate is so close to the bar that no number of samples would do")
    bound = data.lower_bound(config.level(name)) if data.n else math.nan
    return KpiResult(
        name=name,
        metric=kpi.metric or name,
        decided_by=str(kpi.decided_by),
        direction=kpi.direction,
        n=data.n,
        estimate=found.in_unit(data.effect) if data.n else None,
        bar=found.in_unit(found.bar),
        bound=found.in_unit(bound) if data.n else None,
        p_pass=p_values[0],
        p_fail=p_values[1],
        outcome=outcome,
        more=more,
        method=data.method,
        reason=reason,
    )


def _outcome(
    p_values: tuple[float, float], levels: tuple[float, float], n: int, minimum: int
) -> tuple[GateOutcome, str]:
    if n < minimum:
        return GateOutcome.INCONCLUSIVE, f"{n:,} of the {minimum:,} units that it needs at least"
    if p_values[0] <= levels[0]:
        return GateOutcome.PASS, ""
    if p_values[1] <= levels[1]:
        return GateOutcome.FAIL, ""
    return GateOutcome.INCONCLUSIVE, ""
