"""KPIs over a sliding window, and the breach that ends a canary's service."""

from __future__ import annotations

import pytest

from rlhf.serving.live_counts import LiveCounts
from rlhf.serving.live_kpi import SLICES, CanaryWatch, Kpi, KpiRule, KpiWindow


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rule(**changes: object) -> KpiRule:
    fields = {"kpi": Kpi.ERRORS, "limit": 0.25, "window_seconds": 60.0, "minimum": 4, **changes}
    return KpiRule(**fields)  # type: ignore[arg-type]


def test_a_limit_is_broken_by_more_than_its_fraction_and_not_before_the_minimum() -> None:
    window = KpiWindow(rule(), Clock())
    for is_bad in (True, False, False):
        window.record(is_bad)
    assert window.breach() is None  # 1 of 3, too few
    window.record(False)
    assert window.breach() is None  # 1 of 4 is the limit
    window.record(True)
    assert str(window.breach()) == "errors: 2 of 5 in 60 s (40.0%), limit 25.0%"


def test_events_leave_the_window_with_time() -> None:
    clock = Clock()
    window = KpiWindow(rule(), clock)
    for _ in range(4):
        window.record(True)
    clock.now += 58
    assert window.breach() is not None
    clock.now += 3
    assert window.breach() is None
    window.record(True)
    assert window.breach() is None


def test_memory_does_not_grow_with_events() -> None:
    clock = Clock()
    window = KpiWindow(rule(), clock)
    for _ in range(20_000):
        clock.now += 0.01
        window.record(False)
    assert len(window._slices) <= SLICES


@pytest.mark.parametrize(("seconds", "is_bad"), [(0.5, False), (1.5, True), (None, True)])
def test_slowness_is_measured_by_the_rules_own_limit(seconds: float | None, is_bad: bool) -> None:
    watch = CanaryWatch([rule(kpi=Kpi.SLOW, slow_seconds=1.0, minimum=1), rule()], Clock())
    watch.record_first_byte(seconds)
    assert (watch.breach() is not None) is is_bad


def test_a_rule_counts_its_own_kpi_only_and_the_first_broken_one_is_named() -> None:
    watch = CanaryWatch([rule(minimum=1), rule(kpi=Kpi.THUMBS_DOWN, minimum=1)], Clock())
    watch.record(Kpi.LOW_SCORES, True)
    assert watch.breach() is None
    watch.record(Kpi.THUMBS_DOWN, True)
    breach = watch.breach()
    assert breach is not None
    assert breach.rule.kpi is Kpi.THUMBS_DOWN


def test_live_counts_compare_the_kpis_that_both_have() -> None:
    counts = LiveCounts()
    for is_bad in (True, False, False):
        counts.record("c", Kpi.ERRORS, is_bad)
    counts.record("p", Kpi.ERRORS, False)
    counts.record("p", Kpi.THUMBS_DOWN, True)
    sides = {"candidate": {"successes": 1, "n": 3}, "production": {"successes": 0, "n": 1}}
    assert counts.compared("c", "p") == {"counts": {"errors": sides}, "artefact": "c", "baseline": "p"}
