"""What more labels would buy: a learning curve through measured accuracies, and the raters' time.

The curve is an inverse power law that approaches the ceiling by the raters' noise: accuracy(n) = c − b n^(−g), with n
labels (Hestness et al. 2017, "Deep learning scaling is predictable, empirically"; Figueroa et al. 2012, BMC Med.
Inform. Decis. Mak. 12:8, for small n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from rlhf.evaluation.intervals import Z95
from rlhf.feedback.records import Vote
from rlhf.storage.jsonl import json_safe
from rlhf.types import Float64

FEWEST_POINTS = 3
FARTHEST = 4.0
"""Largest factor by which a forecast may exceed the largest measured number of labels."""
STEEPEST = 2.0
"""Largest g; measured exponents lie below 1."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Held-out accuracy of a reward model trained on a number of labels."""

    labels: int
    accuracy: float
    low: float
    """Lower end of the 95% interval, clustered by prompt (``eval/accuracy_ci_low``)."""
    high: float

    @property
    def error(self) -> float:
        """Standard error, from the interval's width."""
        return max(self.high - self.low, 1e-6) / (2 * Z95)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Expected accuracy after more labels, with 95% intervals; None, with a reason, if the curve is not identified."""

    labels: int
    """Labels in total, after the additional ones."""
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    gain: float | None = None
    """Expected accuracy minus that of the curve at the largest measured number of labels."""
    gain_low: float | None = None
    gain_high: float | None = None
    exponent: float | None = None
    """g."""
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return json_safe(asdict(self))


def forecast(
    points: Sequence[CurvePoint], additional: int, ceiling: float, *, seed: int = 0, resamples: int = 300
) -> Forecast:
    """Forecast the accuracy after ``additional`` labels.

    The curve is fitted by weighted least squares, and refitted to accuracies drawn from their normal distributions: a
    parametric bootstrap. Points that were measured on the same held-out set vary together, so the interval of the gain
    is wider than need be.

    It is refused if there are fewer than three different numbers of labels, if the accuracy of the largest number does
    not exceed that of the smallest by more than the noise of both (z < 1.96), if the interval of an accuracy lies above
    the ceiling, or if the forecast is for more than four
    times the largest number: then the data do not determine b and g.

    Args:
        ceiling: c, such as ``Ceiling.majority`` of the held-out votes; 1.0 if nothing is known.
    """
    ordered = sorted(points, key=lambda point: point.labels)
    total = (ordered[-1].labels if ordered else 0) + additional
    reason = _why_refused(ordered, total, ceiling)
    if reason:
        return Forecast(labels=total, reason=reason)
    curve = _Curve.of(ordered, ceiling)
    random = np.random.default_rng(seed)
    drawn = [curve.refit(random.normal(curve.accuracy, curve.error)) for _ in range(resamples)]
    fits = np.array([curve.fit, *drawn])  # the first is the estimate, the others are its bootstrap
    at_total, at_last = (curve.values(fits, n) for n in (total, ordered[-1].labels))
    accuracy, gain = _with_interval(at_total), _with_interval(at_total - at_last)
    return Forecast(
        labels=total,
        accuracy=accuracy[0],
        low=accuracy[1],
        high=accuracy[2],
        gain=gain[0],
        gain_low=gain[1],
        gain_high=gain[2],
        exponent=float(_exponent(curve.fit)),
    )


def _with_interval(values: Float64) -> tuple[float, float, float]:
    """The first value, and the 95% interval of the others."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)


def _why_refused(points: Sequence[CurvePoint], total: int, ceiling: float) -> str:
    """Why the data do not determine the curve; empty if they do. Points are sorted."""
    if len({point.labels for point in points}) < FEWEST_POINTS:
        return f"fewer than {FEWEST_POINTS} different numbers of labels"
    first, last = points[0], points[-1]
    if last.accuracy - first.accuracy <= Z95 * math.hypot(first.error, last.error):
        return f"the accuracy at {last.labels} labels does not clearly exceed that at {first.labels}"
    if max(point.accuracy - Z95 * point.error for point in points) >= ceiling:
        return f"measured accuracies exceed the ceiling of {ceiling:.3f}: its assumptions do not hold"
    if total > FARTHEST * last.labels:
        return f"{total} labels are more than {FARTHEST:g} times the largest measured number, {last.labels}"
    return ""


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """Measured points (P,) and the ceiling that the curve approaches.

    A fit is (2,): the logarithm of the gap to the ceiling at the largest n, and that of g.
    """

    n: Float64
    accuracy: Float64
    error: Float64
    ceiling: float

    @classmethod
    def of(cls, points: Sequence[CurvePoint], ceiling: float) -> _Curve:
        columns = ([getattr(point, name) for point in points] for name in ("labels", "accuracy", "error"))
        n, accuracy, error = (np.array(column, dtype=np.float64) for column in columns)
        return cls(n=n, accuracy=accuracy, error=error, ceiling=ceiling)

    @cached_property
    def fit(self) -> Float64:
        """The fit to the measured accuracies."""
        return self.refit(self.accuracy)

    def refit(self, accuracy: Float64) -> Float64:
        """The fit to other accuracies at the same points."""

        def residuals(fit: Float64) -> Float64:
            return (self.values(fit, self.n) - accuracy) / self.error

        gap = max(self.ceiling - float(accuracy[-1]), 1e-3)
        return least_squares(residuals, [math.log(gap), math.log(0.3)], method="lm").x

    def values(self, fit: Float64, n: Float64 | float) -> Float64:
        """Accuracies at n labels, of the shape that n and fits (..., 2) broadcast to."""
        return self.ceiling - np.exp(fit[..., 0] - _exponent(fit) * np.log(n / self.n[-1]))


def _exponent(fit: Float64) -> Float64:
    """g of fits (..., 2): positive, as the fit is of its logarithm."""
    return np.exp(np.minimum(fit[..., 1], math.log(STEEPEST)))


@dataclass(frozen=True, kw_only=True)
class LabelCost:
    """The raters' time that labels take."""

    seconds_per_vote: float
    """Median of the votes of known duration."""
    minutes: float
    """Of all raters together."""


def label_cost(votes: Sequence[Vote], labels: int, votes_per_label: float) -> LabelCost | None:
    """Time for ``labels`` items with ``votes_per_label`` votes each; None if no vote's duration is known.

    The median vote, not the mean: a page left open over lunch is no work. Pauses between votes are not counted.
    """
    seconds = [vote.seconds for vote in votes if vote.seconds is not None]
    if not seconds:
        return None
    median = float(np.median(seconds))
    return LabelCost(seconds_per_vote=median, minutes=median * labels * votes_per_label / 60)
