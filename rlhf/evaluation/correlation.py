"""Correlation of scores with response length, which shows a length bias."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def length_correlation(scores: ArrayLike, lengths: ArrayLike) -> float:
    """Pearson correlation of ``scores`` (n,) with ``lengths`` (n,); 0 if n < 2 or one of them is constant."""
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
