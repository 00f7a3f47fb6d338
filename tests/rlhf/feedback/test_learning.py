"""Forecasts of a learning curve, refusals, and cost."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf.feedback.learning import CurvePoint, LabelCost, forecast, label_cost
from rlhf.feedback.records import Choice, Vote


def point(labels: int, accuracy: float, half_width: float = 0.01) -> CurvePoint:
    return CurvePoint(labels=labels, accuracy=accuracy, low=accuracy - half_width, high=accuracy + half_width)


def test_points_on_a_power_law_are_continued_on_it() -> None:
    """0.9 − 0.3 (n/100)^(−½): 0.6, 0.75, 0.8, and at 1,600 labels 0.825."""
    found = forecast([point(900, 0.8), point(100, 0.6), point(400, 0.75)], 700, 0.9, resamples=100)
    assert found.labels == 1600
    assert found.accuracy == pytest.approx(0.825, abs=1e-4)
    assert found.gain == pytest.approx(0.025, abs=1e-4)
    assert found.exponent == pytest.approx(0.5, abs=1e-3)
    assert found.low < 0.825 < found.high and 0 < found.gain_low < 0.025 < found.gain_high
    assert found.reason == "" and found.as_json()["accuracy"] == found.accuracy


def test_more_noise_gives_wider_intervals_and_a_seed_the_same_ones() -> None:
    points = [(100, 0.6), (400, 0.75), (900, 0.8)]
    narrow, wide = (forecast([point(*p, w) for p in points], 700, 0.9, resamples=100) for w in (0.005, 0.03))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert forecast([point(*p, 0.03) for p in points], 700, 0.9, resamples=100) == wide


@pytest.mark.parametrize(
    ("points", "additional", "ceiling", "reason"),
    [
        ([], 1000, 0.9, "fewer than 3"),
        ([point(100, 0.6), point(100, 0.61), point(900, 0.8)], 1000, 0.9, "fewer than 3"),
        ([point(100, 0.7), point(400, 0.71), point(900, 0.705)], 1000, 0.9, "does not clearly exceed"),
        ([point(100, 0.6, 0.2), point(400, 0.7, 0.2), point(900, 0.8, 0.2)], 1000, 0.9, "does not clearly exceed"),
        ([point(100, 0.6), point(400, 0.75), point(900, 0.8)], 3000, 0.9, "more than 4 times"),
        ([point(100, 0.6), point(400, 0.75), point(900, 0.8)], 1000, 0.7, "exceed the ceiling"),
    ],
)
def test_a_curve_that_is_not_identified_is_not_continued(
    points: list[CurvePoint], additional: int, ceiling: float, reason: str
) -> None:
    found = forecast(points, additional, ceiling)
    assert reason in found.reason
    assert (found.accuracy, found.gain, found.gain_low) == (None, None, None)


def test_the_interval_covers_the_truth() -> None:
    """40 noisy measurements of the same curve; independent errors of 0.01 at each point."""
    n = np.array([200, 500, 1000, 2000])
    truth = 0.85 - 0.25 * (n / 200) ** -0.4
    at_3000 = 0.85 - 0.25 * (3000 / 200) ** -0.4
    covered = 0
    for row in np.random.default_rng(0).normal(truth, 0.01, size=(40, 4)):
        points = [point(int(k), float(a), 1.96 * 0.01) for k, a in zip(n, row)]
        found = forecast(points, 1000, 0.85, resamples=60)
        covered += found.low < at_3000 < found.high
    assert covered >= 34


def test_cost_by_hand() -> None:
    """Median of 10, 20 and 600 s; 1,000 labels of 3 votes take 20 · 3,000 s = 1,000 minutes."""
    votes = [
        Vote(id=str(i), item="a", rater="r", choice=Choice.TIE, seconds=seconds)
        for i, seconds in enumerate([10.0, 600.0, 20.0, None])
    ]
    assert label_cost(votes, 1000, 3) == LabelCost(seconds_per_vote=20.0, minutes=1000.0)
    assert label_cost(votes[3:], 1000, 3) is None
