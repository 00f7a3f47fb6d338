"""The gate against known truth: false decisions stay within the stated error, also over repeated looks, and good
models pass. 1,000 repetitions each; a share above the level plus three standard errors (7.1% at 5%) fails a test."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlhf.serving.gate import combine, decide
from rlhf.serving.gate_data import CountSeries, ItemSeries, Series
from rlhf.serving.gate_result import GateOutcome
from rlhf.serving.gate_spec import GateConfig, KpiConfig
from rlhf.serving.kpi import measure_kpi
from rlhf.serving.measurement import Proportion

REPETITIONS = 1000
LEVEL = 0.05
MOST = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / REPETITIONS)
LOOKS = (100, 200, 400)
Draw = Callable[[np.random.Generator, int], Series]
"""Draws a series of n items whose true effect is that of the test."""


def items(candidate: np.ndarray, production: np.ndarray | None = None) -> ItemSeries:
    names = tuple(map(str, range(len(candidate))))
    base = np.full(len(candidate), math.nan) if production is None else production
    return ItemSeries(items=names, clusters=names, candidate=candidate.astype(float), production=base.astype(float))


def first(data: Series, n: int) -> Series:
    assert isinstance(data, ItemSeries)
    return ItemSeries(
        items=data.items[:n], clusters=data.clusters[:n], candidate=data.candidate[:n], production=data.production[:n]
    )


def binary(rate: float) -> Draw:
    return lambda random, n: items(random.random(n) < rate)


def paired(worse: float, better: float) -> Draw:
    """Candidate and production differ on a fraction of the items, in either direction."""

    def draw(random: np.random.Generator, n: int) -> Series:
        which = random.choice(3, p=[worse, 1 - worse - better, better], size=n)
        return items(which >= 1, which <= 1)

    return draw


def scores(mean: float) -> Draw:
    """Skewed scores in [0, 1]: mostly 1."""
    return lambda random, n: items(1 - random.beta(0.3, 0.3 * mean / (1 - mean), n))


def gate(looks: str, **kpi: Any) -> GateConfig:
    return GateConfig(for_stage="shadow", kpis={"k": KpiConfig(minimum_n=50, **kpi)}, looks=looks)  # type: ignore[arg-type]


def outcome(config: GateConfig, data: Series) -> GateOutcome:
    found = measure_kpi("k", config.kpis["k"], data, config.looks == "sequential")
    level = config.level("k")
    if found.measurement.n < config.kpis["k"].minimum_n:
        return GateOutcome.INCONCLUSIVE
    if found.measurement.p_above(found.bar) <= level:
        return GateOutcome.PASS
    return GateOutcome.FAIL if found.measurement.p_below(found.bar) <= level else GateOutcome.INCONCLUSIVE


def shares(config: GateConfig, draw: Draw, repetitions: int = REPETITIONS) -> tuple[float, float]:
    """Fractions of the repetitions that ever passed, and that ever failed; a sequential gate looks three times."""
    random, passed, failed = np.random.default_rng(7), 0, 0
    for _ in range(repetitions):
        data = draw(random, LOOKS[-1])
        looks = LOOKS if config.looks == "sequential" else LOOKS[-1:]
        found = {outcome(config, first(data, n)) for n in looks}
        passed += GateOutcome.PASS in found
        failed += GateOutcome.FAIL in found
    return passed / repetitions, failed / repetitions


ABSOLUTE: dict[str, Any] = {"decided_by": "absolute", "threshold": 0.9}
NOT_WORSE: dict[str, Any] = {"decided_by": "non_inferiority", "margin": 0.05}
BETTER: dict[str, Any] = {"decided_by": "superiority"}
SCORES: dict[str, Any] = {**ABSOLUTE, "range": (0.0, 1.0)}

AT_THE_BAR = {
    "absolute": (ABSOLUTE, binary(0.9)),
    "non-inferiority": (NOT_WORSE, paired(0.08, 0.03)),
    "superiority": (BETTER, paired(0.1, 0.1)),
    "scores": (SCORES, scores(0.9)),
}


@pytest.mark.parametrize("looks", ["fixed", "sequential"])
@pytest.mark.parametrize(("kpi", "draw"), AT_THE_BAR.values(), ids=AT_THE_BAR)
def test_false_decisions_stay_within_the_level(looks: str, kpi: dict[str, Any], draw: Draw) -> None:
    """At the bar both decisions are false ones."""
    passed, failed = shares(gate(looks, **kpi), draw)
    assert passed <= MOST
    assert failed <= MOST


def rare_faults(random: np.random.Generator, n: int) -> Series:
    """Scores of 0.99 or 1, and of 0 in 1% of the cases: most small samples have none of these."""
    return items(np.where(random.random(n) < 0.01, 0, np.where(random.random(n) < 0.5, 0.99, 1)))


def seconds(random: np.random.Generator, n: int) -> Series:
    return items(random.lognormal(0, 0.5, n))


def rewards(random: np.random.Generator, n: int) -> Series:
    base = random.normal(3, 1, n)
    return items(base + 0.8 - random.lognormal(0, 0.5, n) / math.exp(0.125), base)


WITHOUT_RANGE: dict[str, tuple[dict[str, Any], Draw]] = {
    "scores": ({"decided_by": "absolute", "threshold": 0.99 * 0.995}, rare_faults),
    "seconds": ({"decided_by": "absolute", "direction": "lower", "threshold": math.exp(0.125)}, seconds),
    "rewards": ({"decided_by": "non_inferiority", "margin": 0.2}, rewards),
}


@pytest.mark.parametrize(("kpi", "draw"), WITHOUT_RANGE.values(), ids=WITHOUT_RANGE)
def test_small_skewed_samples_without_a_range_stay_within_the_level(kpi: dict[str, Any], draw: Draw) -> None:
    """With no range at all, the t-test passes falsely in more than half of the first and in 8% of the second."""
    config, random = gate("fixed", **kpi), np.random.default_rng(7)
    found = [outcome(config, draw(random, 60)) for _ in range(REPETITIONS)]
    assert found.count(GateOutcome.PASS) <= MOST * REPETITIONS
    assert found.count(GateOutcome.FAIL) <= MOST * REPETITIONS


@pytest.mark.parametrize("looks", ["fixed", "sequential"])
@pytest.mark.parametrize(
    ("kpi", "good", "bad"),
    [
        (ABSOLUTE, binary(0.97), binary(0.82)),
        (NOT_WORSE, paired(0.02, 0.04), paired(0.2, 0.04)),
        (BETTER, paired(0.05, 0.2), paired(0.2, 0.05)),
        (SCORES, scores(0.97), scores(0.8)),
    ],
    ids=AT_THE_BAR,
)
def test_good_models_pass_and_bad_ones_fail(looks: str, kpi: dict[str, Any], good: Draw, bad: Draw) -> None:
    least = 0.9 if looks == "fixed" else 0.8
    passed, failed = shares(gate(looks, **kpi), good, 200)
    assert passed >= least
    assert failed <= 0.01
    passed, failed = shares(gate(looks, **kpi), bad, 200)
    assert failed >= least
    assert passed <= 0.01


def test_repeated_looks_with_the_plain_test_promote_falsely() -> None:
    """Why a fixed gate looks once: the same three looks, each at 5%."""
    config, random = gate("fixed", **BETTER), np.random.default_rng(7)
    draw, wrong = paired(0.1, 0.1), 0
    for _ in range(REPETITIONS):
        data = draw(random, LOOKS[-1])
        wrong += GateOutcome.PASS in {outcome(config, first(data, n)) for n in LOOKS}
    assert wrong / REPETITIONS > 1.5 * LEVEL


def test_counts_of_two_arms_over_repeated_looks() -> None:
    random = np.random.default_rng(7)
    for looks in ("fixed", "sequential"):
        config, passed, failed, found_good = gate(looks, **NOT_WORSE), 0, 0, 0
        for _ in range(REPETITIONS):
            at_bar, good = Counts(random, 0.85, 0.9), Counts(random, 0.93, 0.9)
            seen = {outcome(config, at_bar.after(n)) for n in ((1000,) if looks == "fixed" else (300, 1000))}
            passed += GateOutcome.PASS in seen
            failed += GateOutcome.FAIL in seen
            found_good += outcome(config, good.after(1000)) is GateOutcome.PASS
        assert passed / REPETITIONS <= MOST
        assert failed / REPETITIONS <= MOST
        assert found_good / REPETITIONS >= 0.9


class Counts:
    """Outcomes of two arms; the canary gets half as many requests as production."""

    def __init__(self, random: np.random.Generator, candidate: float, production: float) -> None:
        self.candidate = np.cumsum(random.random(1000) < candidate)
        self.production = np.cumsum(random.random(2000) < production)

    def after(self, n: int) -> CountSeries:
        return CountSeries(
            candidate=Proportion(successes=int(self.candidate[n - 1]), n=n),
            production=Proportion(successes=int(self.production[2 * n - 1]), n=2 * n),
        )


def test_of_many_kpis_all_or_any_the_gate_keeps_its_level() -> None:
    """Four KPIs at their bars: no candidate is good enough, and none of them is bad."""
    names, random = ("a", "b", "c", "d"), np.random.default_rng(3)
    kpi = KpiConfig(**ABSOLUTE)
    wrong = {"all": 0, "any": 0, "any, uncorrected": 0, "all, fails": 0}
    for _ in range(REPETITIONS):
        data = {name: measure_kpi(name, kpi, binary(0.9)(random, 100), False) for name in names}
        for require, correction, key in (
            ("all", "holm", "all"),
            ("any", "holm", "any"),
            ("any", "none", "any, uncorrected"),
        ):
            rule = {"require": require, "correction": correction}
            config = GateConfig(for_stage="shadow", kpis=dict.fromkeys(names, kpi), **rule)  # type: ignore[arg-type]
            found = decide_outcome(config, data)
            wrong[key] += found is GateOutcome.PASS
            wrong["all, fails"] += key == "all" and found is GateOutcome.FAIL
    assert wrong["all"] / REPETITIONS <= MOST
    assert wrong["any"] / REPETITIONS <= MOST
    assert wrong["all, fails"] / REPETITIONS <= MOST
    assert wrong["any, uncorrected"] / REPETITIONS > LEVEL + 0.02


def decide_outcome(config: GateConfig, data: dict[str, Any]) -> GateOutcome:
    found, results = decide(config, data)
    assert found is combine([result.outcome for result in results], config.require)
    return found
