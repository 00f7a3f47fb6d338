"""Running mean and variance, updated batch by batch (Chan, Golub and LeVeque 1983)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean, and sum of squared deviations from the mean."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """The standard deviation, with n − 1 as divisor; 1 for fewer than two numbers, so that it can be divided by."""
        return float(np.sqrt(self.squares / (self.count - 1))) if self.count > 1 else 1.0

    def add(self, batch: np.ndarray) -> Moments:
        """Return the moments with a batch (n,) added, in float64."""
        values = np.asarray(batch, dtype=np.float64)
        if not len(values):
            return self
        count = self.count + len(values)
        delta = values.mean() - self.mean
        squares = np.square(values - values.mean()).sum() + delta**2 * self.count * len(values) / count
        return Moments(
            count=count, mean=float(self.mean + delta * len(values) / count), squares=float(self.squares + squares)
        )
